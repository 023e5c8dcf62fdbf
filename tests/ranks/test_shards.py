"""Shards and their sums do not depend on how many processes there are."""

import numpy as np
import pytest

from ttrl_pop.ranks.shards import enough_for, owned, shard_of, splits, total


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
    found = [[shard_of(m, p, members, problems, shards) for p in range(problems)] for m in range(members)]
    counts = [sum(row.count(shard) for row in found) for shard in range(shards)]
    assert sum(counts) == members * problems
    assert max(counts) - min(counts) <= 1
    if members % shards == 0:
        assert all(len(set(row)) == 1 for row in found)


def test_shards_that_a_run_begins_with() -> None:
    assert [enough_for(size) for size in (1, 2, 3, 4, 5, 8, 9)] == [1, 2, 4, 4, 8, 8, 16]
