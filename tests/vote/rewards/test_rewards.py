"""Rewards: values by hand, and the answer key's only door."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import ROOT, ballot

from ttrl_pop.errors import UsageError
from ttrl_pop.types import AnswerKey
from ttrl_pop.vote.graders.exact import ExactGrader
from ttrl_pop.vote.rewards import consensus
from ttrl_pop.vote.rewards.base import build_reward
from ttrl_pop.vote.rewards.consensus import form, frequency, gated, majority, overlong
from ttrl_pop.vote.rewards.novelty import novelty_rewards, tfidf_similarity

EXAMPLES = ROOT / "examples" / "plugins"
GOLD = AnswerKey({"p": "1/3"})


def test_majority_pays_the_largest_cluster_only() -> None:
    assert majority(ballot(1, 0, None, 0, 2)) == (0.0, 1.0, 0.0, 1.0, 0.0)


def test_majority_pays_the_cluster_that_equals_a_label_elected_elsewhere() -> None:
    assert majority(ballot(0, 0, 1, label="1", label_cluster=1)) == (0.0, 0.0, 1.0)
    assert majority(ballot(0, 0, None, label="7", label_cluster=None)) == (0.0, 0.0, 0.0)


def test_majority_of_none_is_nothing() -> None:
    assert majority(ballot(None, None)) == (0.0, 0.0)


def test_frequency_is_the_share_of_all_rollouts() -> None:
    assert frequency(ballot(0, 0, 1, None)) == (0.5, 0.5, 0.25, 0.0)


@pytest.mark.parametrize("cluster_G", [(0, 1, 2), (0,), (0, None, None), (None, None), ()])
def test_frequency_pays_nothing_when_no_two_answers_agree(cluster_G: tuple[int | None, ...]) -> None:
    assert frequency(ballot(*cluster_G)) == (0.0,) * len(cluster_G)


def test_frequency_pays_shares_of_votes_where_these_are_not_of_rollouts() -> None:
    assert frequency(ballot(0, 1, 1, shares=(0.7, 0.3))) == (0.7, 0.3, 0.3)


def test_gated_pays_the_label_only_where_consensus_is_clear() -> None:
    # p1 = 3/8 and p2 = 2/8 lead by 1/8, which is not more than 1/8.
    assert gated(ballot(0, 0, 0, 1, 1, 2, 3, 4)) == (0.0,) * 8
    # p1 = 3/8, p2 = 1/8: clear.
    assert gated(ballot(0, 0, 0, 1, 2, 3, 4, 5)) == (1.0, 1.0, 1.0) + (0.0,) * 5
    # p1 = 3/9 is below 0.375.
    assert gated(ballot(0, 0, 0, 1, 2, 3, 4, 5, 6)) == (0.0,) * 9


def test_gated_punishes_no_answer_and_rare_answers_of_the_unsure() -> None:
    # 16 rollouts, 8 for the label; three lone answers with p_c = 1/16 < 1/8, two of which are less certain than the
    # average of −0.6875 over the 15 that answered: (8·−0.5 + 4·−0.75 − 0.5625 − 0.75 − 2) / 15.
    clusters = (0,) * 8 + (1,) * 4 + (2, 3, 4, None)
    logprobs = (-0.5,) * 8 + (-0.75,) * 4 + (-0.5625, -0.75, -2.0, -9.0)
    expected = (1.0,) * 8 + (0.0,) * 4 + (0.0, -1.0, -1.0, -1.0)
    assert gated(ballot(*clusters, logprob_G=logprobs)) == expected
    # Without log-probabilities nobody is known to be unsure.
    assert gated(ballot(*clusters, logprob_G=(None,) * 16)) == (1.0,) * 8 + (0.0,) * 7 + (-1.0,)


def test_gated_pays_no_label_from_elsewhere_that_the_group_itself_does_not_lead_with() -> None:
    assert gated(ballot(0, 0, 0, 1, label="1", label_cluster=1)) == (0.0,) * 4
    assert gated(ballot(0, 0, 1, 1, label="1", label_cluster=1)) == (0.0,) * 4
    assert gated(ballot(0, 0, 0, 1, label="7", label_cluster=None)) == (0.0,) * 4


def test_gated_counts_shares_exactly() -> None:
    # 22 of 40 lead 17 of 40 by 1/8, which is not more than 1/8; as floats it is.
    assert 22 / 40 - 17 / 40 > 0.125
    assert gated(ballot(*(0,) * 22, *(1,) * 17, 2))[0] == 0.0


def test_format_pays_an_answer_that_ended_by_itself() -> None:
    assert form(ballot(0, 1, None, 0, finished_G=(True, True, True, False))) == (1.0, 1.0, 0.0, 0.0)


def test_overlong_falls_over_the_last_fifth() -> None:
    votes = ballot(0, 0, 0, 0, lengths_G=(8, 9, 10, 10), finished_G=(True, True, True, False), token_limit=10)
    assert overlong(votes) == pytest.approx((0.0, -0.5, -1.0, -1.0))
    with pytest.raises(UsageError, match="token limit"):
        overlong(ballot(0, token_limit=None))


def test_a_sum_of_terms_adds_what_each_pays() -> None:
    reward = build_reward("majority + 0.2*format+ 2*overlong", AnswerKey(), ExactGrader())
    votes = ballot(0, 0, 1, None, lengths_G=(1, 9, 1, 1), finished_G=(True, True, True, False))
    assert reward(votes) == pytest.approx((1.2, 1.2 - 1.0, 0.2, -2.0))
    assert build_reward("0.5*majority", AnswerKey(), ExactGrader())(ballot(0, 1)) == (0.5, 0.0)


@pytest.mark.parametrize(
    "name", ["majority+", "x*majority", "nan*majority", "inf*majority", "majority++format", "2*", "+majority"]
)
def test_a_sum_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="reward"):
        build_reward(name, AnswerKey(), ExactGrader())


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


@pytest.mark.parametrize("name", ["majority", "frequency"])
def test_built_in_rewards_need_no_gold(name: str) -> None:
    assert build_reward(name, AnswerKey(), ExactGrader()) is getattr(consensus, name)


@pytest.fixture
def plug_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "class Plain:\n"
        "    def __init__(self, *given): self.given = given\n"
        "    def __call__(self, ballot): return (0.0,) * len(ballot.answers_G)\n"
        "class Oracle(Plain):\n"
        "    needs_gold = True\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("plug_ins")
def test_only_a_reward_that_asks_for_gold_gets_the_answer_key() -> None:
    grader = ExactGrader()
    plain: Any = build_reward("my_rewards:Plain", GOLD, grader)
    oracle: Any = build_reward("my_rewards:Oracle", GOLD, grader)
    assert plain.given == ()
    assert oracle.given == (GOLD, grader)


@pytest.mark.usefixtures("plug_ins")
def test_a_reward_that_is_not_callable_is_refused() -> None:
    with pytest.raises(UsageError, match=r"must be callable.*'my_rewards:number', a int"):
        build_reward("my_rewards:number", GOLD, ExactGrader())


def test_example_reward_loads_as_a_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    reward = build_reward("reward_short:short_majority", AnswerKey(), ExactGrader())
    votes = ballot(0, 0, 1, None, 0, texts_G=("x" * 10, "x" * 40, "", "x" * 20, "x" * 20))
    assert reward(votes) == (1.0, 0.5, 0.0, 0.0, 1.0)
