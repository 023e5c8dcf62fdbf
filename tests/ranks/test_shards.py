"""Shards and their sums do not depend on how many processes there are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttrl_pop.ranks.shards import cut, enough_for, owned, splits, together, total


@pytest.mark.parametrize("shards", [1, 2, 4, 8, 64])
def test_every_shard_has_one_owner_and_all_own_about_as_many(shards: int) -> None:
    for size in range(1, shards + 1):
        parts = [owned(rank, size, shards) for rank in range(size)]
        assert [shard for part in parts for shard in part] == [*range(shards)]
        assert max(map(len, parts)) <= 2 * min(map(len, parts))


def test_sums_of_several_processes_are_those_of_one_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((8, 4000)) * 10.0 ** rng.integers(-6, 3, (8, 4000))).astype(np.float32)
    alone = total(range(8), values.__getitem__, np.add)
    assert not np.array_equal(alone, values.sum(0)), "the order of the sum must be seen here"
    for size in range(1, 9):
        sums = [total(owned(rank, size, 8), values.__getitem__, np.add) for rank in range(size)]
        # As `Group.add` has it: smaller groups first.
        groups = {group for rank in range(size) for group in splits(rank, size)}
        for low, middle, _ in sorted(groups, key=lambda group: group[2] - group[0]):
            sums[low] = sums[low] + sums[middle]
        assert np.array_equal(sums[0], alone), size


@pytest.mark.parametrize(("members", "problems", "shards"), [(4, 3, 4), (3, 4, 4), (2, 5, 8), (16, 16, 4), (1, 1, 4)])
def test_shards_are_even_and_a_mind_stays_together_where_there_are_enough(
    members: int, problems: int, shards: int
) -> None:
    asked = [(problem, mind) for problem in range(problems) for mind in range(members)]
    for read in ([(mind, problem) for problem, mind in asked], [("one for all", problem) for problem, _ in asked]):
        order = together(read)
        assert sorted(order) == [*range(len(asked))]
        found = dict(zip(order, cut([1] * len(order), shards), strict=True))
        counts = [[*found.values()].count(shard) for shard in range(shards)]
        assert sum(counts) == members * problems
        assert max(counts) - min(counts) <= 1
        # What is read is read by one shard, or two where a border lies across it.
        readings = {(found[i], *read[i]) for i in order}
        assert len(readings) <= len({*read}) + shards - 1
        if members % shards == 0 and read[0][0] == 0:
            assert len({(found[i], asked[i][1]) for i in order}) == members


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.sampled_from([1, 2, 4, 8, 64]))
def test_shards_lie_side_by_side_and_none_costs_more_than_its_share_and_an_item(costs: list[int], shards: int) -> None:
    found = cut(costs, shards)
    assert found == sorted(found)
    assert set(found) <= {*range(shards)}
    for shard in set(found):
        spent = sum(cost for cost, each in zip(costs, found, strict=True) if each == shard)
        assert spent <= sum(costs) / shards + max(costs)


def test_shards_that_a_run_begins_with() -> None:
    assert [enough_for(size) for size in (1, 2, 3, 4, 5, 8, 9)] == [1, 2, 4, 4, 8, 8, 16]
