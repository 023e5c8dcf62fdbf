"""Rollouts that a run has to do with, against what it then does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import PROBLEMS, tiny_session

from ttrl_pop.run.progress import Progress
from ttrl_pop.run.workload import workload
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.train import train
from ttrl_pop.types import Load, Phase


def test_surveys_and_steps_are_counted_in_rollouts() -> None:
    config = tiny_session(problems_per_step=4, steps=5).config
    assert workload(config, problems=6, done=2, labelled=0, surveys=2) == Load(2 * 6 * 4, 3 * 4 * 4, 3 * 4 * 4)
    assert workload(config, problems=3, done=5, labelled=0, surveys=0) == Load()


@pytest.mark.parametrize("settings", [{}, {"labels": "base"}, {"labels": "average", "label_rollouts": 3}])
def test_a_run_does_what_was_counted(tmp_path: Path, settings: dict[str, Any]) -> None:
    session = tiny_session(problems_per_step=4, steps=3, **{f"vote__{key}": value for key, value in settings.items()})
    load = workload(session.config, len(PROBLEMS), 0, 0, 0)
    phases: Sequence[Phase] = [
        event for event in train(session, RunDirectory(tmp_path), Progress()) if isinstance(event, Phase)
    ]
    for work in ("sample", "learn"):
        assert sum(phase.rollouts for phase in phases if phase.work == work) == getattr(load, work)
    assert session.backend.meter.rollouts == load.sample
