"""The exact grader: spellings that must share a key, answers that must not, and text that must not hurt."""

import json
import time
from fractions import Fraction
from itertools import combinations

import pytest
from fakes import CASES, ROOT
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ttrl_pop.plugins import load
from ttrl_pop.vote.graders.base import Grader
from ttrl_pop.vote.graders.exact import ExactGrader

EXAMPLES = ROOT / "examples" / "plugins"
EQUAL = json.loads((CASES / "exact_equal.json").read_text(encoding="utf-8"))
DIFFERENT = json.loads((CASES / "exact_different.json").read_text(encoding="utf-8"))

HOSTILE = {
    "digits": "9" * 5000,
    "digits below the length limit": "9" * 999,
    "digits over digits": "9" * 499 + "/" + "9" * 499,
    "exponent": "1e999999999",
    "largest exponent": "9" * 900 + "e1000",
    "tower": "9^9^9^9^9^9^9^9",
    "braces": "{" * 100_000,
    "nested braces": "{" * 100_000 + "}" * 100_000,
    "nested braces below the length limit": "{" * 500 + "}" * 500,
    "nested brackets below the length limit": "(1," * 200 + "2" + ")" * 200,
    "nested text": r"\text{" * 140 + "1" + "}" * 140,
    "closing only": "}" * 999,
    "frac": r"\frac" * 199,
    "spaces": "1" + " " * 990 + "/",
    "commas": "1," * 499,
    "thousands": "1" + ",111" * 240,
    "surrogate": "\ud800",
    "long surrogate": "\ud800" * 2000,
    "code": "__import__('os').system('true')",
    "zero denominators": r"\frac{1}{0}",
    "mixed over zero": "1 1/0",
}


@pytest.fixture
def grader() -> ExactGrader:
    return ExactGrader()


@pytest.mark.parametrize("spellings", EQUAL, ids=lambda spellings: spellings[0])
def test_spellings_of_one_answer_share_a_key(grader: ExactGrader, spellings: list[str]) -> None:
    assert {spelling: grader.key(spelling) for spelling in spellings} == dict.fromkeys(
        spellings, grader.key(spellings[0])
    )
    assert grader.key(spellings[0])


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_answers_have_different_keys(grader: ExactGrader, a: str, b: str) -> None:
    assert grader.key(a) != grader.key(b)
    assert not grader.same(a, b)


def test_groups_of_equal_answers_differ_from_each_other(grader: ExactGrader) -> None:
    keys = [grader.key(spellings[0]) for spellings in EQUAL]
    assert [pair for pair in combinations(keys, 2) if pair[0] == pair[1]] == []


@pytest.mark.parametrize("answer", [None, "", " ", "$$", ".", r"\text{}", r"\,", "x=", " " * 2000])
def test_no_answer_equals_nothing_not_even_itself(grader: ExactGrader, answer: str | None) -> None:
    assert not grader.same(answer, answer)
    assert not grader.same(answer, "1")
    assert not grader.same(None, answer)


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_gets_a_key_quickly(grader: ExactGrader, answer: str) -> None:
    start = time.perf_counter()
    key = grader.key(answer)
    assert time.perf_counter() - start < 1
    assert key
    assert key != grader.key(answer + "x")


def test_an_exponent_within_the_limit_is_a_number_and_beyond_it_is_text(grader: ExactGrader) -> None:
    assert grader.same("1e1000", "10e999")
    assert not grader.same("1e1001", "10e1000")


def spellings_of(number: Fraction, pad: int) -> list[str]:
    """Every way to write a number that the grader promises to see through."""
    sign, n, d = ("-" if number < 0 else ""), abs(number.numerator), number.denominator
    factor = pad + 1
    spelled = [
        f"{sign}{n}/{d}",
        f"{sign}{n * factor}/{d * factor}",
        rf"{sign}\frac{{{n}}}{{{d}}}",
        rf"$\dfrac{{{sign}{n}}}{{{d}}}$",
        rf"{sign}{n:,}/{d}",
        rf"{n}/{d}".join((sign.replace("-", "−"), "")),
        rf"\boxed{{{sign}{n}/{d}}}.",
    ]
    if n < 10 and d < 10:
        spelled.append(rf"{sign}\frac{n}{d}")
    if n > d:
        spelled += [f"{sign}{n // d} {n % d}/{d}", rf"{sign}{n // d}\frac{{{n % d}}}{{{d}}}"]
    if 10**6 % d == 0:
        decimal = f"{n * 10**6 // d:07d}"
        whole, rest = decimal[:-6], decimal[-6:]
        spelled += [f"{sign}{whole}.{rest}" + "0" * pad, f"{sign}{int(whole):,}.{rest}"]
        spelled.append(rf"{sign}{n * 10**6 // d}\times10^{{-6}}")
    if d == 1:
        spelled += [f"{sign}{n}", f"{sign}{n:,}", f"{sign}{n}." + "0" * pad, rf"{sign}{n}\text{{ apples}}"]
    return spelled


numbers = st.builds(Fraction, st.integers(-(10**7), 10**7), st.sampled_from([1, 1, 2, 3, 4, 5, 7, 8, 100, 360, 15625]))


@settings(deadline=None)
@given(numbers, st.integers(0, 5))
def test_the_spelling_of_a_number_does_not_change_its_key(number: Fraction, pad: int) -> None:
    key = ExactGrader().key
    assert {spelling: key(spelling) for spelling in spellings_of(number, pad)} == dict.fromkeys(
        spellings_of(number, pad), str(number)
    )


@settings(deadline=None)
@given(numbers, numbers)
def test_different_numbers_have_different_keys(a: Fraction, b: Fraction) -> None:
    key = ExactGrader().key
    for spelling_a in spellings_of(a, 1):
        for spelling_b in spellings_of(b, 2):
            assert (key(spelling_a) == key(spelling_b)) == (a == b)


@settings(deadline=None)
@given(st.lists(numbers, min_size=2, max_size=4), st.sampled_from(["()", "[]", "(]", "[)"]), st.data())
def test_elements_of_a_tuple_may_be_spelled_in_any_way(
    elements: list[Fraction], brackets: str, data: st.DataObject
) -> None:
    plain = [[s for s in spellings_of(number, 1) if "," not in s and "apples" not in s] for number in elements]
    spelled = ", ".join(data.draw(st.sampled_from(spellings)) for spellings in plain)
    expected = brackets[0] + ",".join(map(str, elements)) + brackets[1]
    assert ExactGrader().key(brackets[0] + spelled + brackets[1]) == expected


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("\\{}()[],.$ 1/2xab^_=%\n½²−textfrac"), max_size=60) | st.text(max_size=60))
def test_any_text_has_a_key_and_layout_does_not_change_it(text: str) -> None:
    assume(not text.endswith("\\"))  # would turn the space behind it into a LaTeX space
    key = ExactGrader().key
    assert key(f"  {text} ") == key(text)
    assert key(text) == "" or ExactGrader().same(text, text)


class Lopsided(Grader):
    """Calls a equal to b where a begins with b: neither symmetric nor a matter of keys."""

    def key(self, answer: str) -> str:
        return answer

    def equal(self, a: str, b: str) -> bool:
        return a.startswith(b) or (a, b) == ("b", "ab")


def test_same_asks_equal_in_both_directions() -> None:
    grader = Lopsided()
    assert grader.equal("ab", "a")
    assert not grader.same("ab", "a")
    assert not grader.same("a", "ab")
    assert grader.same("a", "a")


def test_example_grader_loads_as_a_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    grader = load("grader", "grader_casefold:CasefoldGrader")()
    assert isinstance(grader, Grader)
    assert grader.same("New  York", "new york")
    assert not grader.same("0.5", "1/2")
    assert not grader.same(" ", " ")
