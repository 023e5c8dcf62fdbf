"""What a run has come to: kept beside the tensors of a checkpoint, undone where a step is cut short, gone on from."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from ttrl_pop.learn.learner import Learner
from ttrl_pop.report.rows import from_metrics_row, metrics_row, rollout_rows
from ttrl_pop.run.collapse import Watch
from ttrl_pop.run.history import History, ProblemState
from ttrl_pop.run.session import Session
from ttrl_pop.store import checkpoint, files
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.types import StepReport, Tally


@dataclass(slots=True)
class Progress:
    """How far a run has come: what a checkpoint keeps beside tensors."""

    step: int = 0
    """Steps done."""
    best_step: int | None = None
    best_agreement: float = 0.0
    bad_in_a_row: int = 0
    history: History = field(default_factory=History)
    labels: dict[str, str | None] = field(default_factory=dict)
    """Labels of the base model, each elected once."""
    token_budget: int | None = None
    """Tokens of the learner's micro-batches, where memory ran out and fewer than configured go on."""
    watch: Watch = field(default_factory=Watch)
    """Has seen every finished step."""


class Keeper:
    """Writes what a run leaves behind: the rows of each step, checkpoints, and nothing of a step that was cut short."""

    def __init__(self, run: RunDirectory, session: Session, learner: Learner, progress: Progress) -> None:
        """Give the learner, too, what the checkpoint of `progress` has of it."""
        self.run = run
        self.session = session
        self.learner = learner
        self.progress = progress
        self.saved = progress.step
        """Step of the newest checkpoint."""
        if progress.step:
            learner.load_state_tensors(checkpoint.load_optimizer(run.checkpoint(progress.step)))
            learner.bad_in_a_row = progress.bad_in_a_row
            learner.token_budget = progress.token_budget or learner.token_budget

    @contextmanager
    def step(self) -> Iterator[None]:
        """While active, a step is under way. Cut short, it leaves what is saved next as it was before the step."""
        progress = self.progress
        done, history = progress.step, progress.history
        # A checkpoint that is up to date is not written again: nobody needs the learner of before.
        state = self.learner.snapshot() if done > self.saved else None
        finished = False
        try:
            yield
            finished = True
        finally:
            if not finished:
                progress.step, progress.history = done, history
                if state is not None:
                    self.learner.restore(state)

    def finish(self, report: StepReport, tallies: Sequence[Tally], history: History) -> None:
        """Write a step's rollouts and its row of metrics, with which it counts: without, it is repeated at resume."""
        progress = self.progress
        files.write_lines(self.run.rollouts(report.step), (row for tally in tallies for row in rollout_rows(tally)))
        files.append_line(self.run.metrics, metrics_row(report))
        progress.step, progress.history = report.step, history
        # A policy that gives itself full marks for nothing is not the best.
        if not report.alarm:
            # These rollouts were written by the policy of the checkpoint before.
            self._measured(report.step - 1, fmean(tally.agreement for tally in tallies))

    def save_if_due(self) -> None:
        """Save after every `checkpoint.every` steps and after the last one."""
        config, step = self.session.config, self.progress.step
        if step % config.checkpoint.every == 0 or step == config.steps:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of the steps done, unless it is there; remove those that are no longer kept."""
        progress, learner, session = self.progress, self.learner, self.session
        if progress.step == self.saved:
            return
        state: dict[str, Any] = {
            "best_step": progress.best_step,
            "best_agreement": progress.best_agreement,
            "bad_in_a_row": learner.bad_in_a_row,
            "labels": progress.labels,
            "token_budget": learner.token_budget,
            "limits": session.backend.limits(),
        }
        rows = progress.history.rows()
        checkpoint.save(self.run, progress.step, session.policy, learner.state_tensors(), rows, state)
        self.saved = progress.step
        checkpoint.prune(self.run, session.config.checkpoint.keep, progress.best_step)

    def _measured(self, step: int, agreement: float) -> None:
        """Note the agreement of the checkpoint of `step`, which is known once its policy has been sampled."""
        if agreement > self.progress.best_agreement and self.run.checkpoint(step).exists():
            self.progress.best_step, self.progress.best_agreement = step, agreement
            checkpoint.point_best(self.run, step)


def load_history(folder: Path) -> History:
    """The state of each problem at a checkpoint."""
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
    session.backend.restore_limits(state["limits"])
    progress = Progress(
        step=step,
        best_step=state["best_step"],
        best_agreement=state["best_agreement"],
        bad_in_a_row=state["bad_in_a_row"],
        history=load_history(folder),
        labels=state["labels"],
        token_budget=state["token_budget"],
    )
    for row in rows:
        progress.watch.see(from_metrics_row(row).metrics)
    return progress
