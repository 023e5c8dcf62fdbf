"""A step in shards is the same step, up to rounding."""

import pytest
import torch
from fakes import PROBLEMS, assert_same, gradients, tallies_of, tiny_policy, tiny_session

from ttrl_pop.errors import UsageError
from ttrl_pop.ranks.ranks import Ranks
from ttrl_pop.run.session import check_ranks


@pytest.mark.parametrize("shards", [2, 4, 32])
def test_shards_change_rollouts_and_gradients_by_rounding_alone(shards: int) -> None:
    whole, cut = (tiny_session(tiny_policy(), learn__kl=0.1, shards=count) for count in (1, shards))
    tallies = tallies_of(whole)
    in_order = sorted(tallies_of(cut), key=lambda tally: tally.group.problem.index)
    for one, other in zip(sorted(tallies, key=lambda tally: tally.group.problem.index), in_order, strict=True):
        assert_same([*one.group.rollouts_G], [*other.group.rollouts_G])
    wanted, found = gradients(whole, tallies), gradients(cut, tallies)
    assert wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-14)
    assert len(tallies) == len(PROBLEMS)


def test_more_processes_than_shards_and_one_gpu_for_all_are_refused() -> None:
    several = Ranks()
    several.size = 4
    check_ranks(tiny_session(shards=4).config, several)
    check_ranks(tiny_session().config, several)
    with pytest.raises(UsageError, match="at least the number of processes, got 2 for 4"):
        check_ranks(tiny_session(shards=2).config, several)
    with pytest.raises(UsageError, match="device must be cpu, cuda or auto"):
        check_ranks(tiny_session(device="cuda:1").config, several)
