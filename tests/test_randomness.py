"""Counter-based randomness and the order of problems."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttrl_pop import randomness
from ttrl_pop.population.base import spawned
from ttrl_pop.types import Mind

PARTS = st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=8)), max_size=4)


@given(PARTS, PARTS)
def test_different_keys_are_different_streams(one: list[int | str], other: list[int | str]) -> None:
    assert (randomness.digest(*one) == randomness.digest(*other)) == (
        [(type(p), p) for p in one] == [(type(p), p) for p in other]
    )


def test_a_stream_begins_anew_and_a_longer_draw_begins_with_the_shorter() -> None:
    first = randomness.stream("token", 0, 1, "p", 7, 0).random(10)
    assert (randomness.stream("token", 0, 1, "p", 7, 0).random(20)[:10] == first).all()
    assert (randomness.stream("token", 0, 2, "p", 7, 0).random(10) != first).all()


def test_known_values_do_not_change() -> None:
    # Runs on disk are resumed with these.
    assert randomness.seed("mind", 0, 1, 0) == KNOWN_SEED
    assert randomness.stream("token", 0).random() == pytest.approx(KNOWN_UNIFORM, abs=1e-15)


KNOWN_SEED = 3711627519630364669
KNOWN_UNIFORM = 0.9078665014638305


@given(st.integers(0, 5), st.integers(1, 30), st.integers(1, 40))
def test_every_problem_comes_once_before_any_comes_again(seed: int, population: int, size: int) -> None:
    taken = list(islice(randomness.batches(seed, population, size), 12))
    size = min(size, population)
    assert all(len(batch) == size == len(set(batch)) for batch in taken)
    drawn = [i for batch in taken for i in batch]
    # A step that straddles two orders may hold back its own problems, so the balance is within one round.
    counts = [drawn.count(i) for i in range(population)]
    assert max(counts) - min(counts) <= 2
    assert sorted(drawn[: population - population % size]) == sorted(set(drawn[: population - population % size]))
    assert taken == list(islice(randomness.batches(seed, population, size), 12))


def test_integers_of_numpy_are_the_integers_that_they_stand_for() -> None:
    """Seeds come out of tables and arrays."""
    assert randomness.digest("a", np.int64(7)) == randomness.digest("a", 7)
    assert randomness.digest("7") != randomness.digest(7)
    assert spawned(np.int64(3), np.int64(1), 2) == spawned(3, 1, 2)
    # Outside of tests nobody looks at types.
    for seed in (np.int32(7), True):
        mind = object.__new__(Mind)
        object.__setattr__(mind, "seed", seed)
        mind.__post_init__()
        assert (mind.seed, type(mind.seed)) == (int(seed), int)


def test_normals_of_many_keys_are_those_of_their_streams() -> None:
    keys = [("noise", seed, site) for seed in (1, 2**62) for site in ("a", "b", "ä")]
    for count in (1, 7, 576, 3001):
        drawn = randomness.normals(keys, count)
        for row, key in zip(drawn, keys, strict=True):
            assert np.array_equal(row, randomness.stream(*key).standard_normal(count, np.float32))
    assert randomness.normals([], 3).shape == (0, 3)
