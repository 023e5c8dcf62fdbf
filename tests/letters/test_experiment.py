"""Processes of the letters experiment: what they find is told, and none is left."""

from multiprocessing import active_children
from threading import active_count

import pytest

from ttrl_pop.letters.experiment import Result, experiment
from ttrl_pop.letters.regimes import REGIMES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("is_left_early", [False, True])
def test_an_experiment_leaves_neither_processes_nor_threads(is_left_early: bool) -> None:
    before = active_count()
    (first, *_) = REGIMES
    events = experiment([first.after(1 if not is_left_early else 5_000)], [0])
    event = next(events)
    if is_left_early:
        events.close()
    else:
        rows = [found.row() for found in events if isinstance(found, Result)]
        assert [row["kappa"] for row in rows] == [first.kappa]
    assert (event.regime.kappa, event.seed) == (first.kappa, 0)
    assert active_children() == []
    assert active_count() == before
