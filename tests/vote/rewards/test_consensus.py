"""Rewards that need the votes alone: values by hand."""

import pytest
from fakes import ballot

from ttrl_pop.errors import UsageError
from ttrl_pop.vote.rewards.consensus import form, frequency, gated, majority, overlong


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
