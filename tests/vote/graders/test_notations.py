"""Answers as people and models in other countries, programs and styles write them: one answer, or two.

`tests/cases/notations.json` holds pairs by kind. Whatever makes more answers equal must leave its different pairs
apart, as must the properties below: a label that two answers share wrongly is learned from without a word.
"""

import json

import pytest
from fakes import CASES
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ttrl_pop.vote.graders.exact import ExactGrader
from ttrl_pop.vote.graders.math import MathGrader
from ttrl_pop.vote.graders.units import unit_of

NOTATIONS = json.loads((CASES / "notations.json").read_text(encoding="utf-8"))
PAIRS = [(kind, side, *pair) for kind, sides in NOTATIONS.items() for side in sides for pair in sides[side]]

OF_NUMBERS = [
    "{}-{}",
    "{}-{}-{}",
    "{} - {}",
    "{}/{}/{}",
    "{}:{}",
    "{} to {}",
    "{} in {}",
    "({},{})",
    "[{}, {})",
    "({};{})",
    "]{};{}[",
    r"({}\text{{ kg}}, {}\text{{ m}})",
    r"{}\text{{ days}}, {}\text{{ hours}}",
    r"{}\text{{ days and }}{}\text{{ hours}}",
    r"{}\text{{ ft }}{}\text{{ in}}",
    r"{} ft {} in",
    r"{}\text{{ remainder }}{}",
    r"{}\text{{ adults}}, {}\text{{ children}}",
    r"\${}, €{}",
    r"\begin{{pmatrix}}{}\\{}\end{{pmatrix}}",
    r"x={}, y={}",
    r"P(A)={}, P(B)={}",
    r"\text{{Ann}}: {}, \text{{Bob}}: {}",
    r"{}\text{{ R}}{}",
    "A{} B{}",
]
"""Answers in which it counts which number stands where."""
OF_WORDS = [
    "({},{})",
    "{}, {}",
    "{}-{}",
    "{} {}",
    "{}>{}>{}",
    r"\text{{{}}}, \text{{{}}}",
    r"\text{{{} and {}}}",
    "{}{}",
]
"""Answers in which it counts which word stands where."""
WORDS = ["red", "blue", "Ann", "Bob", "T", "F", "A", "C", "HT", "TH", "east", "no", "Mon"]


@pytest.mark.parametrize(("kind", "side", "a", "b"), PAIRS)
def test_notations(grader: MathGrader, kind: str, side: str, a: str, b: str) -> None:
    assert grader.same(a, b) == grader.same(b, a) == (side == "equal"), kind


def numbers_in(template: str) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(1, 9999), min_size=template.count("{}"), max_size=template.count("{}"), unique=True)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(OF_NUMBERS), st.data())
def test_answers_that_differ_in_a_digit_or_an_order_are_never_equal(
    grader: MathGrader, template: str, data: st.DataObject
) -> None:
    numbers = data.draw(numbers_in(template))
    changed = list(numbers)
    if data.draw(st.booleans()):
        changed = list(data.draw(st.permutations(numbers)))
    else:
        changed[data.draw(st.integers(0, len(numbers) - 1))] = data.draw(st.integers(1, 9999))
    assume(changed != numbers)
    assert not grader.same(template.format(*numbers), template.format(*changed))


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(OF_WORDS), st.data())
def test_answers_that_differ_in_a_word_or_an_order_of_words_are_never_equal(
    grader: MathGrader, template: str, data: st.DataObject
) -> None:
    count = template.count("{}")
    words, changed = (data.draw(st.lists(st.sampled_from(WORDS), min_size=count, max_size=count)) for _ in range(2))
    a, b = template.format(*words), template.format(*changed)
    assume(a.casefold().replace(" ", "") != b.casefold().replace(" ", ""))
    assert not grader.same(a, b)


@settings(deadline=None)
@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyzKMNR .-0123456789", min_size=1, max_size=12))
def test_what_stands_in_text_behind_a_number_is_dropped_only_if_it_is_a_unit(word: str) -> None:
    assume(any(map(str.isalpha, word)))
    text = rf"\text{{ {word}}}"
    key = ExactGrader().key(f"40{text}")
    assert (key == "40") == (unit_of(text) is not None)


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (["1,234", "1234", "1234"], "1,234 counts as 1234, as a comma before three digits parts thousands"),
        (["1,234", "1.234"], "1,234 counts as 1234, as a comma before three digits parts thousands"),
        (["1,234", "7"], None),
        (["1,234", "1,234 dollars"], None),
        (["1,234.5", "1234.5"], None),
        (["(1,234)", "1234"], None),
        (["12", None], None),
        ([r"5\text{ m}", "5 km", "5"], r"5 km and 5\text{ m} count as one answer, as units are dropped"),
        (["5 cm", r"5\text{ centimeters}", "5"], None),
        (["5 cm", "6 km"], None),
    ],
)
def test_a_vote_that_a_doubtful_rule_decides_is_told_of(answers: list[str | None], told: str | None) -> None:
    assert MathGrader().doubt(answers) == ExactGrader().doubt(reversed(answers)) == told
