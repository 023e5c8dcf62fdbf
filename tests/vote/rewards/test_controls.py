"""Controls: paid by chance, of which each draw is a pure function of the ballot."""

import statistics
from collections.abc import Callable
from dataclasses import replace

import pytest
from fakes import ballot
from hypothesis import given
from hypothesis import strategies as st

from ttrl_pop.vote.rewards.base import Ballot
from ttrl_pop.vote.rewards.consensus import majority
from ttrl_pop.vote.rewards.controls import coin, shuffled

CONTROLS = (coin, shuffled)
HALF = (0, 0, 0, 0, 1, 1, None, 2)


def of_step(step: int) -> Ballot:
    """A ballot with the votes `HALF`, whose texts differ from step to step."""
    return ballot(*HALF, texts_G=tuple(f"{step} {i}" for i in range(len(HALF))))


@pytest.mark.parametrize("reward", CONTROLS)
def test_the_same_ballot_is_paid_the_same(reward: Callable[[Ballot], tuple[float, ...]]) -> None:
    assert reward(of_step(1)) == reward(of_step(1))
    assert len({reward(of_step(step)) for step in range(20)}) > 10


@pytest.mark.parametrize("reward", CONTROLS)
def test_another_problem_is_another_draw(reward: Callable[[Ballot], tuple[float, ...]]) -> None:
    one = of_step(1)
    assert len({reward(replace(one, problem_id=str(i))) for i in range(20)}) > 10


@given(st.lists(st.none() | st.integers(0, 3), min_size=1, max_size=12).filter(lambda g: None in g or 0 in g))
def test_shuffled_pays_as_many_as_the_majority_does(cluster_g: list[int | None]) -> None:
    given = ballot(*cluster_g)
    assert sorted(shuffled(given)) == sorted(majority(given))


@pytest.mark.parametrize("reward", CONTROLS)
def test_pay_tells_nothing_of_the_answer(reward: Callable[[Ballot], tuple[float, ...]]) -> None:
    paid = [reward(of_step(step)) for step in range(2000)]
    # Half of the rollouts have the label, so both controls pay half: within four standard errors everywhere.
    for place in range(len(HALF)):
        assert statistics.fmean(pay[place] for pay in paid) == pytest.approx(0.5, abs=4 * 0.5 / 2000**0.5)


def test_coin_is_a_coin_for_each_rollout_alone() -> None:
    paid = [coin(of_step(step)) for step in range(2000)]
    assert {value for pay in paid for value in pay} == {0.0, 1.0}
    both = statistics.fmean(pay[0] * pay[1] for pay in paid)
    assert both == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 2000) ** 0.5)


def test_coin_does_not_look_at_votes() -> None:
    assert coin(of_step(1)) == coin(replace(of_step(1), cluster_G=(None,) * len(HALF), label=None, label_cluster=None))
