"""Micro-batches: cut by tokens, and cut again where memory runs out."""

import pytest

from ttrl_pop.learn.micro_batches import MicroBatches, Sample
from ttrl_pop.types import Mind, Rollout

SAMPLES = [Sample(Rollout(Mind(i), (i, i), (1, 2, 3), (0.0,) * 3, "", "stop", 0), float(i), 1.0) for i in range(12)]
"""Each of four tokens: two of its prompt, and all but the last of its completion."""


def numbers(part: list[Sample]) -> list[float]:
    return [sample.advantage for sample in part]


def batches(token_budget: int) -> MicroBatches:
    return MicroBatches(lambda sample: sample.rollout.mind, token_budget)


def test_every_part_is_worked_on_once_in_order() -> None:
    assert list(batches(16).map(numbers, SAMPLES)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_where_memory_runs_out_the_rest_is_cut_again_for_good(error: Exception) -> None:
    tried: list[list[float]] = []

    def work(part: list[Sample]) -> list[float]:
        tried.append(numbers(part))
        if 5 in tried[-1] and len(part) > 1:
            raise error
        return tried[-1]

    cut = batches(16)
    assert list(cut.map(work, SAMPLES)) == [[0, 1, 2, 3], *([i] for i in range(4, 12))]
    assert tried == [[0, 1, 2, 3], [4, 5, 6, 7], [4, 5], *([i] for i in range(4, 12))]
    assert cut.token_budget == 4
    assert len(list(cut.map(numbers, SAMPLES))) == 12


def test_a_single_sample_that_does_not_fit_and_other_errors_are_raised() -> None:
    def fails(error: Exception) -> None:
        raise error

    for budget, error in ((4, MemoryError("none left")), (16, RuntimeError("shapes do not match"))):
        cut = batches(budget)
        with pytest.raises(type(error), match=str(error)):
            list(cut.map(lambda part, error=error: fails(error), SAMPLES))  # type: ignore[misc]
        assert cut.token_budget == budget
