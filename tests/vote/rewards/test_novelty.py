"""Reward `novelty`: values by hand, and the words of texts."""

import numpy as np
import pytest
from fakes import ballot

from ttrl_pop.types import AnswerKey
from ttrl_pop.vote.graders.exact import ExactGrader
from ttrl_pop.vote.rewards.base import build_reward
from ttrl_pop.vote.rewards.novelty import novelty_rewards, tfidf_similarity

SIMILARITY = np.array([[1.0, 0.8, 0.2, 0.0], [0.8, 1.0, 0.6, 0.0], [0.2, 0.6, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])


def test_novelty_by_hand() -> None:
    # Label side 0, 1, 2: s = 0.5, 0.7, 0.4; m = 0.8, 0.8, 0.6; u = 0.35, 0.25, 0.5; ũ = 0.4, 0, 1.
    assert novelty_rewards(ballot(0, 0, 0, 1), SIMILARITY) == pytest.approx((0.7, 0.5, 1.0, -0.75))
    # Sides {0, 1} and {2}: s = 0.8, 0.8; m = 0.8, 0.8; equal, so ũ = 1/2. The last one abstains.
    assert novelty_rewards(ballot(0, 0, 1, None), SIMILARITY) == pytest.approx((0.75, 0.75, -0.75, -1.0))
    assert novelty_rewards(ballot(None, None), np.eye(2)) == (-1.0, -1.0)


def test_novelty_reads_the_texts() -> None:
    texts = ("two plus two is four", "two plus two is four", "add them: you get 4", "five")
    reward = build_reward("novelty", AnswerKey(), ExactGrader())
    first, second, third, wrong = reward(ballot(0, 0, 0, 1, texts_G=texts))
    assert first == second == pytest.approx(0.5)
    assert third == pytest.approx(1.0)
    assert wrong == pytest.approx(-0.75)
    assert tfidf_similarity(["", " "]).tolist() == [[0, 0], [0, 0]]
    assert tfidf_similarity(["5", "5", "6"]) == pytest.approx(np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]]))
