"""Rollouts that a run has to do with, against what it then does."""

from pathlib import Path
from typing import Any

import pytest
from fakes import PROBLEMS, tiny_session

from ttrl_pop.run.progress import Progress
from ttrl_pop.run.workload import workload
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.train import train
from ttrl_pop.types import Load, Phase, StepReport


def test_surveys_and_steps_are_counted_in_rollouts() -> None:
    config = tiny_session(problems_per_step=4, steps=5).config
    assert workload(config, problems=6, done=2, labelled=0, surveys=2) == Load(
        survey=2 * 6 * 4, sample=3 * 4 * 4, steps=3
    )
    assert workload(config, problems=3, done=5, labelled=0, surveys=0) == Load()


@pytest.mark.parametrize("settings", [{}, {"labels": "base"}, {"labels": "average", "label_rollouts": 3}])
def test_a_run_does_what_was_counted(tmp_path: Path, settings: dict[str, Any]) -> None:
    session = tiny_session(problems_per_step=4, steps=3, **{f"vote__{key}": value for key, value in settings.items()})
    load = workload(session.config, len(PROBLEMS), 0, 0, 0)
    events = list(train(session, RunDirectory(tmp_path), Progress()))
    phases = [event for event in events if isinstance(event, Phase)]
    assert sum(phase.rollouts for phase in phases if phase.work == "sample") == load.sample
    learned = [phase.rollouts for phase in phases if phase.work == "learn"]
    used = [event.metrics["learn/groups_used"] for event in events if isinstance(event, StepReport)]
    assert learned == [session.config.group_size * groups for groups in used if groups is not None]
    assert len(learned) == load.steps
    assert session.backend.meter.rollouts == load.sample
