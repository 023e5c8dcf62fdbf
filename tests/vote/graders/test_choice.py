"""The choice grader: spellings of one choice, and text that is none."""

import json

import pytest
from fakes import ROOT

from ttrl_pop.plugins import load
from ttrl_pop.vote.graders.choice import ChoiceGrader
from ttrl_pop.vote.graders.exact import ExactGrader

CASES = json.loads((ROOT / "tests/cases" / "choice.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("answer", "letter"), CASES["choices"])
def test_the_letter_of_a_choice_is_its_key(answer: str, letter: str) -> None:
    assert ChoiceGrader().key(answer) == letter


@pytest.mark.parametrize("answer", CASES["others"])
def test_what_is_no_choice_keeps_its_exact_key(answer: str) -> None:
    assert ChoiceGrader().key(answer) == ExactGrader().key(answer)
    assert ChoiceGrader().key(answer) not in set("ABCDEFGHIJ")


def test_choices_with_and_without_their_text_are_equal_and_different_letters_are_not() -> None:
    grader = load("grader", "choice")()
    assert grader.same("C. Paris", r"\textbf{(C)}")
    assert not grader.same("C. Paris", "D. Paris")
    assert not grader.same("", "")


@pytest.mark.parametrize("answer", ["(" * 10**6, "C" * 10**6, "C. " + "x" * 10**6, "\ud800", "C.\x1b[31m"])
def test_hostile_text_has_a_key(answer: str) -> None:
    assert ChoiceGrader().key(answer)
