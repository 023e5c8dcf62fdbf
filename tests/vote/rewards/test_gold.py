"""Reward `gold`: what it pays, and what it needs."""

import pytest
from fakes import ballot

from ttrl_pop.errors import UsageError
from ttrl_pop.types import AnswerKey
from ttrl_pop.vote.graders.exact import ExactGrader
from ttrl_pop.vote.rewards.base import build_reward

GOLD = AnswerKey({"p": "1/3"})


def test_gold_pays_answers_equal_to_gold_whatever_the_majority_says() -> None:
    reward = build_reward("gold", GOLD, ExactGrader())
    votes = ballot(0, 0, 1, None, answers={0: "3", 1: r"\frac13"})
    assert reward(votes) == (0.0, 0.0, 1.0, 0.0)


def test_gold_names_the_problem_without_a_gold_answer() -> None:
    reward = build_reward("gold", GOLD, ExactGrader())
    with pytest.raises(UsageError, match="problem 'other' has none"):
        reward(ballot(0, problem_id="other"))


def test_gold_refuses_an_empty_answer_key() -> None:
    with pytest.raises(UsageError, match=r"reward gold needs gold answers.*--gold.*answer field"):
        build_reward("gold", AnswerKey(), ExactGrader())
