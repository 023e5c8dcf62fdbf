"""What a checkpoint keeps beside tensors, and how a run goes on from one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttrl_pop.learn.learner import Learner
from ttrl_pop.report.rows import from_metrics_row
from ttrl_pop.run.collapse import Watch
from ttrl_pop.run.history import History, ProblemState
from ttrl_pop.run.session import Session
from ttrl_pop.store import checkpoint, files
from ttrl_pop.store.directory import RunDirectory


@dataclass(slots=True)
class Progress:
    """What a checkpoint keeps beside tensors."""

    step: int = 0
    """Steps done."""
    best_step: int | None = None
    best_agreement: float = 0.0
    bad_in_a_row: int = 0
    history: History = field(default_factory=History)
    labels: dict[str, str | None] = field(default_factory=dict)
    """Labels of the base model, each elected once."""
    watch: Watch = field(default_factory=Watch)
    """Has seen every finished step."""

    def measured(self, run: RunDirectory, step: int, agreement: float) -> None:
        """Note the agreement of the checkpoint of `step`, which is known once its policy has been sampled."""
        if agreement > self.best_agreement and run.checkpoint(step).exists():
            self.best_step, self.best_agreement = step, agreement
            checkpoint.point_best(run, step)


def save(run: RunDirectory, session: Session, learner: Learner, progress: Progress) -> None:
    """Write the checkpoint of the step that is done, and remove those that are no longer kept."""
    state: dict[str, Any] = {
        "best_step": progress.best_step,
        "best_agreement": progress.best_agreement,
        "bad_in_a_row": learner.bad_in_a_row,
        "labels": progress.labels,
    }
    rows = progress.history.rows()
    checkpoint.save(run, progress.step, session.policy, learner.state_tensors(), rows, state)
    checkpoint.prune(run, session.config.checkpoint.keep, progress.best_step)


def load_history(folder: Path) -> History:
    """State of each problem at a checkpoint."""
    return History(ProblemState(**row) for row in files.read_lines(folder / checkpoint.PROBLEMS))


def resume(run: RunDirectory, session: Session) -> Progress:
    """Load the newest whole checkpoint into the session's policy and cut metrics back to it, or begin anew."""
    step = checkpoint.latest(run)
    rows = files.truncate_lines(run.metrics, step or 0)
    if step is None:
        return Progress()
    folder = run.checkpoint(step)
    state = checkpoint.load_state(folder)
    checkpoint.load_policy(folder, session.policy)
    best = state["best_step"], state["best_agreement"]
    progress = Progress(step, *best, state["bad_in_a_row"], load_history(folder), state["labels"])
    for row in rows:
        progress.watch.see(from_metrics_row(row).metrics)
    return progress
