"""The math grader: what it holds equal, what it must not, and answers that would hang, crash or take over a parser."""

import io
import json
import re
import threading
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import CASES, text_of
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from ttrl_pop.config import Config
from ttrl_pop.plugins import load
from ttrl_pop.text import safe
from ttrl_pop.types import Group, Mind, Problem, Rollout, Tally
from ttrl_pop.vote.extract.chat import extract_chat
from ttrl_pop.vote.graders.base import Grader
from ttrl_pop.vote.graders.exact import ExactGrader
from ttrl_pop.vote.graders.math import MAX_DEPTH, MAX_LENGTH, MathGrader, is_refused
from ttrl_pop.vote.rewards.consensus import majority
from ttrl_pop.vote.rules import Rules
from ttrl_pop.vote.vote import vote


def cases(name: str) -> Any:
    return json.loads((CASES / f"{name}.json").read_text(encoding="utf-8"))


EQUAL = cases("math_equal")
DIFFERENT = cases("math_different")
SPELLINGS = cases("exact_equal")
HOSTILE = cases("hostile")
HANGS = ["2^{999!}", "x^{999!}", r"(\frac{1}{3})^{999!}", r"\cos(\exp(9^9))"]


def vote_on(texts: Sequence[str], grader: Grader, is_chat: bool = True) -> Tally:
    rollouts = tuple(Rollout(Mind(i), (1,), (2,), (0.0,), text, "stop", 0) for i, text in enumerate(texts))
    prompt = ({"role": "user", "content": "?"},) if is_chat else "?"
    return vote(Group(Problem("p", prompt, 0), rollouts), Rules(grader, majority))


def timed_vote(texts: Sequence[str], grader: MathGrader, is_chat: bool = True) -> tuple[Tally, float]:
    """A vote and its seconds; where these are many, the smaller of two tries, the second with a grader of its own."""
    start = time.perf_counter()
    tally = vote_on(texts, grader, is_chat)
    seconds = time.perf_counter() - start
    if seconds < 2:
        return tally, seconds
    fresh = MathGrader()
    assert fresh.same("n+1", "1+n")
    start = time.perf_counter()
    tally = vote_on(texts, fresh, is_chat)
    seconds = min(seconds, time.perf_counter() - start)
    fresh.close()
    return tally, seconds


def boxed(answers: Sequence[str]) -> list[str]:
    return [rf"\boxed{{{answer}}}" for answer in answers]


def clusters(tally: Tally) -> set[frozenset[int]]:
    return {frozenset(cluster.members) for cluster in tally.clusters}


# --- verdicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), EQUAL)
def test_equal_answers(grader: MathGrader, a: str, b: str) -> None:
    assert grader.same(a, b)
    assert grader.same(b, a)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_answers(grader: MathGrader, a: str, b: str) -> None:
    assert not grader.same(a, b)
    assert not grader.same(b, a)


def test_no_answer_equals_nothing(grader: MathGrader) -> None:
    assert not grader.same(None, None)
    assert not grader.same("$$", "$$")
    assert not grader.same("", "x")


def test_keys_are_those_of_the_exact_grader_and_a_shared_key_is_enough(grader: MathGrader) -> None:
    before = grader.questions
    for spellings in SPELLINGS:
        assert {grader.key(spelling) for spelling in spellings} == {ExactGrader().key(spellings[0])}
        assert all(grader.same(spellings[0], spelling) for spelling in spellings)
    assert grader.questions == before


def test_math_is_the_default_and_built_in() -> None:
    assert load("grader", Config().vote.grader) is MathGrader


def test_no_worker_starts_for_numbers_words_and_prose() -> None:
    grader = MathGrader()
    answers = [
        "56",
        "56.0",
        "1/2",
        "-3",
        "fifty-six",
        "Paris",
        "7 times 8 is 56 and",
        "the answer (of",
        "I don't know.",
    ]
    tally = vote_on(boxed(answers), grader)
    assert (len(tally.clusters), tally.label) == (8, "56")
    assert (grader.questions, grader._worker._process) == (0, None)


def test_only_pairs_that_the_key_leaves_open_are_asked_and_each_once(grader: MathGrader) -> None:
    before = grader.questions
    answers = ["q+1", "1+q", "q+1", "2", "2.0", "3", "1+q"]
    for _ in range(3):
        assert clusters(vote_on(boxed(answers), grader)) == {frozenset({0, 1, 2, 6}), frozenset({3, 4}), frozenset({5})}
    assert 0 < grader.questions - before <= 5


# --- the vote -----------------------------------------------------------------------------------------------------


@st.composite
def votes(draw: st.DrawFn, groups: list[list[str]]) -> tuple[list[str], list[str], list[int]]:
    """Answers, the same answers spelled anew, and an order for these."""
    chosen = draw(st.lists(st.sampled_from(groups), min_size=1, max_size=4))
    spelled = [[draw(st.sampled_from(group)) for group in chosen] for _ in range(2)]
    return spelled[0], spelled[1], draw(st.permutations(range(len(chosen))))


@pytest.mark.slow
@settings(deadline=None, max_examples=1000)
@given(votes(SPELLINGS))
def test_order_and_spelling_do_not_change_the_vote_by_key(drawn: tuple[list[str], list[str], list[int]]) -> None:
    answers, anew, order = drawn
    grader = ExactGrader()
    before, after = vote_on(boxed(answers), grader), vote_on(boxed([anew[i] for i in order]), grader)
    assert [{order[m] for m in c.members} for c in after.clusters] == [set(c.members) for c in before.clusters]
    assert before.label
    assert after.label
    assert grader.key(before.label) == grader.key(after.label)
    assert after.rewards_G == tuple(before.rewards_G[i] for i in order)


@settings(deadline=None, max_examples=40)
@given(votes([pair for pair in EQUAL if pair[0] not in ("x=1/2", "5")]))
def test_order_and_spelling_do_not_change_the_vote_by_algebra(
    grader: MathGrader, drawn: tuple[list[str], list[str], list[int]]
) -> None:
    answers, anew, order = drawn
    before, after = vote_on(boxed(answers), grader), vote_on(boxed([anew[i] for i in order]), grader)
    assert {frozenset(order[m] for m in members) for members in clusters(after)} == clusters(before)
    assert before.label
    assert before.tie or (after.label and grader.same(before.label, after.label))


# --- MATH-500 -----------------------------------------------------------------------------------------------------


def wrapped(gold: str) -> list[str]:
    return [f"${gold}$", f"  {gold} .", rf"\displaystyle {gold}"]


def respelled(gold: str) -> list[str]:
    """Other spellings of an answer: those of each rule that applies to it."""
    spellings = []
    for pattern, by in [
        (r"\\[dt]?frac(?=[^a-z])", r"\\tfrac"),
        (r"\\frac\{([0-9])\}\{([0-9])\}", r"\\frac\1\2"),
        (r"^\\left|\\right", ""),
        (r"([(\[])([^()\[\]]*,[^()\[\]]*)([)\]])", r"\\left\1\2\\right\3"),
        (r"([(\[])([^()\[\]]*,[^()\[\]]*)([)\]])", r"\1 \2 \3"),
        (r"(?<![0-9]),\s*|,\s+(?=[-0-9\\])|,(?=-)", " , "),
        (r"\s+(?=[+-])|(?<=[+-])\s+", ""),
        (r"(?<=[0-9a-z}])\s*\+\s*(?=[0-9a-z\\])", " + "),
        (r"\\text\{(\(?\w+\)?)\}", r"\1"),
        (r"\\text\{(\(?\w+\)?)\}", r"\\textbf{\1}"),
        (r"\\text\{(\(?\w+\)?)\}", r"\\mathrm{\1}"),
        (r"\\mbox|\\text(?=\{ )", r"\\textrm"),
        (r"\s*\\(?:mbox|text)\{ (\w+)\}", r" \1"),
        (r"\s*\\(?:mbox|text)\{ (\w+)\}", r"\\,\\mathrm{\1}"),
        (r",\\!(?=[0-9])", ""),
        (r",\\!(?=[0-9])", ","),
        (r"\\!", r"\\!\\!"),
        (r",(?=-?[0-9]{1,2}(?![0-9]))", r",\\ "),
        (r",(?=-?[0-9]{1,2}(?![0-9]))", r",\\;"),
        (r"\^([0-9])(?![0-9])", r"^{\1}"),
        (r"(?<=[0-9])(?=[A-Z])", r"\\cdot "),
        (r"^x=([0-9]+)$", r"\1"),
        (r"^x=([0-9]+)$", r"x=\1.0"),
        (r"(?<=[0-9]),(?=[0-9]{3}$)", ""),
        (r"(?<=[0-9]),(?=[0-9]{3}$)", "{,}"),
        (r"^\\\$([0-9.]+)$", r"\1"),
        (r"^\\\$([0-9.]+)$", r"\1 dollars"),
        (r"^\\\$([0-9.]+)$", r"\1\\text{ dollars}"),
        (r"\s*(=|\\pm|\\in(?![a-z])|\\cup)\s*(?=[^a-z])", r"\1"),
        (r"\s*(=|\\pm|\\in(?![a-z])|\\cup)\s*", r"  \1 "),
        (r" (?=[-0-9&])", r"  "),
        (r"(?<=begin\{pmatrix\}) | (?=\\end)", ""),
        (r"\\sqrt\{([0-9])\}", r"\\sqrt\1"),
        (r"\^\\circ", " degrees"),
        (r"\^\\circ", r"^{\\circ}"),
        (r"\^\\circ", "°"),
        (r"pmatrix", "bmatrix"),
        (r"^\.", "0."),
        (r"^0\.", "."),
        (r"_\{?([0-9])\}?$", r"_{\1}"),
        (r"_\{?([0-9])\}?$", r"_\1"),
        (r"_\{?([0-9])\}?$", r"_{ \1 }"),
        (r"_\{?([0-9])\}?$", r" _ \1"),
        (r"^([0-9]*\.[0-9]+)$", r"\g<1>0"),
        (r"^([0-9]*\.[0-9]+)$", r"\1\\text{ units}"),
    ]:
        spellings.append(re.sub(pattern, by, gold))
    if re.fullmatch(r"-?[0-9]+", gold):
        spellings += [
            f"{gold}.0",
            rf"\frac{{{2 * int(gold)}}}{{2}}",
            f"n={gold}",
            rf"{gold}\text{{ units}}",
            f"{gold}\\%",
        ]
    if decimal := re.fullmatch(r"([0-9]*)\.([0-9]+)", gold):
        spellings.append(rf"\frac{{{int(decimal[1] + decimal[2])}}}{{1{'0' * len(decimal[2])}}}")
    if ratio := re.fullmatch(r"(-?)\\d?frac\{?([0-9]+)\}?\s*\{?([0-9]+)\}?", gold):
        spellings += [
            f"{ratio[1]}{ratio[2]}/{ratio[3]}",
            rf"{ratio[1]}\frac{{{ratio[2]}0}}{{{ratio[3]}0}}",
        ]
    if not re.search(r"[=_<]|text|\\in ", gold):
        spellings.append(f"x = {gold}")
    if re.search(r"[a-z]", gold) and not re.search(r"[,=_]|text|mbox|begin|circ|cup|infty|in |pm", gold):
        spellings += [f"({gold})", rf"0+{gold}" if gold[0] != "-" else gold, rf"1\cdot ({gold})"]
    return [spelling for spelling in dict.fromkeys(spellings) if spelling != gold]


@pytest.mark.slow
def test_every_gold_answer_of_math_500_extracts_and_equals_its_spellings(grader: MathGrader, golds: list[str]) -> None:
    apart, few = [], []
    for gold in dict.fromkeys(golds):
        assert extract_chat(rf"So it is \boxed{{{gold}}}.", "stop") == gold
        assert grader.same(gold, gold)
        spellings = respelled(gold)
        if len(spellings) < 3:
            few.append((gold, spellings))
        apart += [(gold, spelling) for spelling in wrapped(gold) + spellings if not grader.same(gold, spelling)]
    assert apart == []
    assert few == []


# --- hostile answers ----------------------------------------------------------------------------------------------


def test_the_hostile_corpus_is_large() -> None:
    assert len({json.dumps(case) for case in HOSTILE}) == len(HOSTILE) >= 200


FAST_HOSTILE = [
    {"repeat": ["9", 1000000]},
    {"repeat": ["\\boxed{", 140000]},
    {"repeat": ["^", 1000000]},
    {"repeat": ["\u001b[31m", 100000]},
    [{"repeat": ["\\frac{1}{", 11]}, "2", {"repeat": ["}", 11]}],
    "2^{999!}",
    "9^9^9^9^9^9",
    "1/0",
    "__import__('os').system('touch pwned')",
    "\\input{/etc/passwd}",
    "[bold red]loud[/bold red]",
    "\ud800",
    "1<x<",
]


@pytest.mark.parametrize("case", FAST_HOSTILE, ids=lambda case: ascii(json.dumps(case))[1:40])
def test_hostile_text_is_decided_in_time_and_spoils_nothing(
    grader: MathGrader, case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert case in HOSTILE
    _decide(grader, text_of(case), tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: ascii(json.dumps(case))[1:40])
def test_all_hostile_text_is_decided_in_time_and_spoils_nothing(
    grader: MathGrader, case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _decide(grader, text_of(case), tmp_path, monkeypatch)


def _decide(grader: MathGrader, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    chat, chat_seconds = timed_vote([rf"\boxed{{{text}}}", text, r"\boxed{x+1}", r"\boxed{1+x}"], grader)
    raw, raw_seconds = timed_vote([text, "7", "7.0"], grader, is_chat=False)
    start = time.perf_counter()
    screen = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", legacy_windows=False, width=80)
    for answer in [safe(answer) for tally in (chat, raw) for answer in tally.answers_G if answer]:
        screen.print(Text(answer))
    assert max(chat_seconds, raw_seconds, time.perf_counter() - start) < 2
    assert any({2, 3} <= members for members in clusters(chat))
    assert any({1, 2} <= members for members in clusters(raw))
    assert isinstance(screen.file, io.StringIO)
    assert not {c for c in screen.file.getvalue() if unicodedata.category(c) in {"Cc", "Cf", "Cs"}} - {"\n"}
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("hang", HANGS)
def test_an_answer_that_hangs_is_given_up_once(hasty: MathGrader, hang: str) -> None:
    before = hasty.timeouts
    assert not any(hasty.same(hang, other) for other in ("x+1", "x+2", r"\sqrt{2}"))
    assert hasty.timeouts == before + 1
    assert hasty.same("x+1", "1+x")
    assert hasty.same(hang, f"{hang} ")
    assert hasty.timeouts == before + 1


@pytest.mark.parametrize(
    ("innocent", "blamed"), [("a+b", "a+b+c"), ("x+y+z", "a+b+c+d"), ("a+b", "c+d"), ("a+b+c", "x+y+z")]
)
def test_of_a_pair_that_hangs_the_longer_or_else_the_larger_text_alone_is_given_up(
    monkeypatch: pytest.MonkeyPatch, innocent: str, blamed: str
) -> None:
    grader = MathGrader()
    hanging = {innocent, blamed}
    monkeypatch.setattr(grader._worker, "ask", lambda *texts: None if set(texts) == hanging else {"equal": True})
    assert not grader.equal(blamed, innocent)
    assert not grader.equal(blamed, "n+1")
    assert grader.equal(innocent, "n+1")
    assert (grader.timeouts, grader.questions) == (1, 2)


class Hanging:
    """In place of a worker: pairs of these hang, single answers do not, and all others are equal."""

    def __init__(self, *pairs: set[str]) -> None:
        self.pairs = pairs

    def ask(self, *answers: str) -> dict[str, Any] | None:
        return None if set(answers) in self.pairs else {"equal": True}


def hanging_grader(*pairs: set[str]) -> MathGrader:
    grader = MathGrader()
    grader._worker = Hanging(*pairs)  # type: ignore[assignment]
    return grader


@pytest.mark.parametrize("asked_before", ["a+b", "n+1"])
def test_a_later_vote_has_the_verdicts_of_a_grader_that_saw_no_earlier_one(asked_before: str) -> None:
    undisturbed, resumed = (hanging_grader({"a+b", "a+b+c"}) for _ in range(2))
    undisturbed.equal("a+b+c", asked_before)
    undisturbed.equal("a+b+c", "a+b")
    assert not undisturbed.equal("a+b+c", "n+1")
    later = boxed(["a+b+c", "n+1", "n+1", "a+b"])
    assert clusters(vote_on(later, undisturbed)) == clusters(vote_on(later, resumed))
    for grader in (undisturbed, resumed):
        grader.forget()
    assert undisturbed.equal("a+b+c", "n+1")
    assert resumed.equal("a+b+c", "n+1")


def test_what_is_known_of_a_pair_counts_no_more_once_one_of_it_is_given_up() -> None:
    # A resumed grader does not know the pair, and would say no.
    grader = hanging_grader({"a+b", "a+b+c"})
    assert grader.equal("a+b+c", "n+1")
    assert not grader.equal("a+b+c", "a+b")
    assert not grader.equal("a+b+c", "n+1")


def test_a_comparison_with_gold_leaves_no_trace_in_a_vote_of_another_thread() -> None:
    grader = hanging_grader({"a+b", "a+b+c"})
    verdicts: list[bool] = []
    thread = threading.Thread(target=lambda: verdicts.append(grader.equal("a+b+c", "n+1")))
    assert not grader.equal("a+b+c", "a+b")
    thread.start()
    thread.join()
    assert verdicts == [True]


@pytest.mark.parametrize(
    ("limit", "refused", "taken"),
    [
        ("length", "x+" * (MAX_LENGTH // 2) + "x", "x+" * (MAX_LENGTH // 2 - 1) + "x"),
        ("depth", "(" * (MAX_DEPTH + 1) + "x" + ")" * (MAX_DEPTH + 1), "(" * MAX_DEPTH + "x" + ")" * MAX_DEPTH),
        ("digits", "9" * 61 + "x", "9" * 60 + "x"),
        ("power", "x^{10000}", "x^{9999}"),
        ("power in Python", "x**10000", "x**9999"),
        ("factorial", "1000!x", "999!x"),
        ("factorial of a factorial", "(3!)!x", "(3!)x!"),
        ("binomial", r"\binom{1000}{3}x", r"\binom{999}{3}x"),
        ("tower", "x^{2^n}", "x^{n^2}"),
        ("chain", "x^2^n", "x^2+x^n"),
        ("quote", "x'", "x"),
        ("call", "open(x)", "(x)"),
        ("attribute", "x.y", "x.5"),
        ("underscores", "x__y", "x_y"),
        ("statement", "x;y", "x,y"),
    ],
)
def test_what_is_refused(limit: str, refused: str, taken: str) -> None:
    assert (is_refused(refused), is_refused(taken)) == (True, False), limit
