"""What a run has come to: kept beside the tensors of a checkpoint, undone where a step is cut short, gone on from."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ttrl_pop.config import Positive
from ttrl_pop.errors import CheckpointError, DamagedError, TtrlPopError
from ttrl_pop.learn.learner import Learner
from ttrl_pop.report.rows import from_metrics_row, metrics_row, rollout_rows
from ttrl_pop.run.collapse import Watch
from ttrl_pop.run.history import Count, History, Share
from ttrl_pop.run.session import Session
from ttrl_pop.run.verdict import soundness
from ttrl_pop.store import checkpoint, files, reading
from ttrl_pop.store.directory import FIT, RunDirectory
from ttrl_pop.types import StepReport, Tally


@dataclass(slots=True)
class Progress:
    """How far a run has come: what a checkpoint keeps beside tensors."""

    step: int = 0
    """Steps done."""
    best_step: int | None = None
    best_soundness: float = 0.0
    """How sound the best checkpoint was found (`ttrl_pop.run.verdict.soundness`)."""
    bad_in_a_row: int = 0
    history: History = field(default_factory=History)
    labels: dict[str, str | None] = field(default_factory=dict)
    """Labels of the base model, each elected once."""
    token_budget: int | None = None
    """Tokens of the learner's micro-batches, where memory ran out and fewer than configured go on."""
    watch: Watch = field(default_factory=Watch)
    """Has seen every finished step."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """Row of metrics.jsonl of every finished step."""


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
            folder = run.checkpoint(progress.step)
            try:
                learner.load_state_tensors(checkpoint.load_optimizer(folder))
            except ValueError as error:
                raise CheckpointError(f"{folder}: optimizer does not fit: {error}") from error
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
                del progress.metrics[done:]
                if state is not None:
                    self.learner.restore(state)

    def finish(self, report: StepReport, tallies: Sequence[Tally], history: History) -> None:
        """Write a step's rollouts and its row of metrics, with which it counts: without, it is repeated at resume."""
        progress = self.progress
        files.write_lines(self.run.rollouts(report.step), (row for tally in tallies for row in rollout_rows(tally)))
        row = metrics_row(report)
        files.append_line(self.run.metrics, row)
        progress.metrics.append(row)
        progress.step, progress.history = report.step, history
        # A policy that gives itself full marks for nothing is not the best.
        if not report.alarm:
            # These rollouts were written by the policy of the checkpoint before.
            self._measured(report.step - 1, soundness(report.metrics))

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
            "best_soundness": progress.best_soundness,
            "bad_in_a_row": learner.bad_in_a_row,
            "labels": progress.labels,
            "token_budget": learner.token_budget,
            "limits": session.backend.limits(),
        }
        rows = progress.history.rows()
        tensors = learner.state_tensors()
        checkpoint.save(self.run, progress.step, session.policy, tensors, rows, progress.metrics, state)
        self.saved = progress.step
        checkpoint.prune(self.run, session.config.checkpoint.keep, progress.best_step)

    def _measured(self, step: int, found: float) -> None:
        """Note how sound the checkpoint of `step` is, which is known once its policy has been sampled."""
        # What an interruption has saved between two is no candidate: a run that was never stopped has none there.
        due = step % self.session.config.checkpoint.every == 0
        best = self.progress.best_step is None or found > self.progress.best_soundness
        if due and best and self.run.checkpoint(step).exists():
            self.progress.best_step, self.progress.best_soundness = step, found
            checkpoint.point_best(self.run, step)


def fall_back(run: RunDirectory, session: Session, progress: Progress) -> int | None:
    """Put the policy of the best checkpoint in place of the newest one's, as where a run has collapsed.

    Returns:
        Its step; None where there is no such checkpoint, and the policy stays as it is.
    """
    step = progress.best_step
    if step is None or not checkpoint.is_whole(run.checkpoint(step)):
        return None
    checkpoint.load_policy(run.checkpoint(step), session.policy)
    session.backend.refresh()
    return step


def load_history(folder: Path) -> History:
    """The state of each problem at a checkpoint.

    Raises:
        CheckpointError: the rows are not those of a history.
    """
    try:
        return History.of_rows(files.read_lines(folder / checkpoint.PROBLEMS))
    except ValueError as error:
        raise CheckpointError(f"{folder / checkpoint.PROBLEMS}: {error}") from error


def resume(run: RunDirectory, session: Session, notice: Callable[[str], None] = lambda text: None) -> Progress:
    """Load the newest whole checkpoint into the session's policy and put the run's files back to it, or begin anew.

    Args:
        notice: is told in a line of each file that was not as it was left.

    Raises:
        CheckpointError: the checkpoint holds what no run writes, or another model's weights.
        TtrlPopError: something stands in the place of a file or a folder, or a folder leads out of the run.
    """
    for folder in (run.checkpoints, run.rollouts(1).parent):
        if os.path.lexists(folder) and not folder.is_dir():
            raise TtrlPopError(f"{folder}: must be a folder; move what stands there away")
    for folder in (run.checkpoints, run.rollouts(1).parent, run.path / FIT):
        # What is written, and old checkpoints that are removed, would be somebody's else.
        real = Path(os.path.realpath(folder))
        if not real.is_relative_to(os.path.realpath(run.path)):
            raise TtrlPopError(f"{folder}: must be a folder in the run, leads to {real}; put the folder itself there")
    step = checkpoint.latest(run, notice)
    if step is None:
        if checkpoint.steps(run):
            notice("no whole checkpoint is left: the run begins anew, at step 1")
        files.write_atomic(run.metrics, b"")
        return Progress()
    folder = run.checkpoint(step)
    kept = _kept(folder)
    checkpoint.load_policy(folder, session.policy)
    session.backend.restore_limits(kept.limits)
    progress = Progress(
        step=step,
        best_step=kept.best_step,
        best_soundness=kept.best_soundness,
        bad_in_a_row=kept.bad_in_a_row,
        history=load_history(folder),
        labels=kept.labels,
        token_budget=kept.token_budget,
        metrics=_rows_of_metrics(folder, step),
    )
    for row in progress.metrics:
        progress.watch.see(from_metrics_row(row).metrics)
    _put_back_metrics(run, folder, notice)
    if progress.best_step is not None and run.checkpoint(progress.best_step).exists():
        checkpoint.point_best(run, progress.best_step)
    # A kill between saving and pruning leaves one more than is kept.
    checkpoint.prune(run, session.config.checkpoint.keep, progress.best_step)
    return progress


@dataclass(frozen=True, slots=True)
class _Kept:
    """What state.json holds of a run's progress."""

    best_step: Count | None
    best_soundness: Share
    bad_in_a_row: Count
    labels: dict[str, str | None]
    token_budget: Positive | None
    limits: dict[str, Positive]


_KEPT = TypeAdapter(_Kept)


def _kept(folder: Path) -> _Kept:
    """What a checkpoint holds of its run's progress.

    Raises:
        CheckpointError: something else than a run writes.
    """
    try:
        return _KEPT.validate_python(checkpoint.load_state(folder))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{folder / 'state.json'}: {place}: {first['msg']}") from error


def _rows_of_metrics(folder: Path, step: int) -> list[dict[str, Any]]:
    """The rows that a checkpoint keeps of metrics.jsonl, one for each step up to its own.

    Raises:
        CheckpointError: something else than a run writes.
    """
    path = folder / checkpoint.METRICS
    rows = list(files.read_lines(path))
    counted = len(rows) == step and all(row.get("step") == number for number, row in enumerate(rows, 1))
    if not (counted and all(_is_figure(key, value) for row in rows for key, value in row.items())):
        raise CheckpointError(f"{path}: must hold the figures of steps 1 to {step}, one row each")
    return rows


def _is_figure(key: str, value: object) -> bool:
    if key == "alarm":
        return isinstance(value, str)
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _put_back_metrics(run: RunDirectory, folder: Path, notice: Callable[[str], None]) -> None:
    """Let metrics.jsonl hold the rows of a checkpoint, and no later ones."""
    kept = reading.read_bytes(folder / checkpoint.METRICS, reading.LARGE)
    try:
        with reading.opened(run.metrics, reading.LARGE) as file:
            found = None if file.read(len(kept)) == kept else "has other rows than the steps gave"
    except DamagedError as error:
        found = error.reason
    if found:
        notice(f"{run.metrics}: {found}; it is written anew from {folder.name}, and nothing is lost")
    files.write_atomic(run.metrics, kept)
