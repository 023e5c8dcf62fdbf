"""The loop: read → sample → vote → learn → report. A generator; whoever iterates decides how to show it.

Closing the generator or interrupting it (Ctrl-C, a closed pipe) saves the steps that are finished; an update cut short
is undone first. A process that is killed resumes from its newest whole checkpoint and repeats the rest, on a CPU to the
byte: every draw is a function of (seed, step, problem, mind, sample).
"""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from ttrl_pop import randomness
from ttrl_pop.errors import CollapseError
from ttrl_pop.learn.learner import Learner, LearnerState
from ttrl_pop.population.base import MEAN
from ttrl_pop.report.step import from_metrics_row, metrics_row, rollout_rows, step_report
from ttrl_pop.run.collapse import Watch
from ttrl_pop.run.history import History, ProblemState, group_weight
from ttrl_pop.run.session import Session
from ttrl_pop.sample.sample import sample
from ttrl_pop.store import checkpoint
from ttrl_pop.store.checkpoint import RunDirectory
from ttrl_pop.types import Mind, Problem, StepReport, Tally
from ttrl_pop.vote.vote import Labels, elect


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


def train(session: Session, run: RunDirectory, progress: Progress) -> Generator[Tally | StepReport, None, None]:
    """Train from `progress.step` to the configured number of steps, yielding each tally and then the step's report.

    Raises:
        CollapseError: the alarm went off and the configuration asks to stop then; a checkpoint has been saved.
    """
    config, policy, backend = session.config, session.policy, session.backend
    learner = Learner(policy, config)
    if progress.step:
        learner.load_state_tensors(checkpoint.load_optimizer(run.checkpoint(progress.step)))
        learner.bad_in_a_row = progress.bad_in_a_row
    problems = session.problems.problems
    order = islice(
        randomness.batches(config.seed, len(problems), config.problems_per_step), progress.step, config.steps
    )
    labellers = Labellers(session, learner, progress.labels)
    saved = progress.step
    # While a step is under way: what to fall back to, with the learner's state where no checkpoint has it.
    undo: tuple[int, History, LearnerState | None] | None = None
    try:
        for step, indices in enumerate(order, start=progress.step + 1):
            clock, timeouts = Clock(), session.grader.timeouts
            undo = (progress.step, progress.history, learner.snapshot() if progress.step > saved else None)
            batch = [problems[i] for i in sorted(indices)]
            with clock.span("time/vote"), clock.span("time/sample"):
                labels = labellers.elect(batch, step)
            minds = policy.population.spawn(config.seed, step, config.population.minds)
            samples = config.population.samples_per_mind
            groups = sample(backend, session.prompts, batch, minds, samples, config.seed, step)
            tallies = []
            for tally in clock.timed("time/vote", session.tallies(clock.timed("time/sample", groups), labels)):
                tallies.append(tally)
                yield tally
            tallies.sort(key=lambda tally: tally.group.problem.index)
            history = progress.history.after(tallies, step, session.grader.same, config.guard)
            with clock.span("time/learn"):
                weights = {problem.id: group_weight(history[problem.id], config.guard) for problem in batch}
                update = learner.learn(tallies, step, weights)
                backend.refresh()
            report = step_report(
                step,
                tallies,
                update,
                policy.population.metrics(),
                session.answers,
                session.grader.same,
                clock.times(),
                history.flip_share(progress.history, (problem.id for problem in batch)),
                session.grader.timeouts - timeouts,
            )
            report = replace(report, alarm=progress.watch.see(report.metrics))
            checkpoint.write_lines(run.rollouts(step), (row for tally in tallies for row in rollout_rows(tally)))
            checkpoint.append_line(run.metrics, metrics_row(report))
            # A step counts once its row is there; one cut short before is repeated at resume.
            progress.step, progress.history = step, history
            if not report.alarm:
                # A policy that gives itself full marks for nothing is not the best.
                progress.measured(run, step - 1, fmean(tally.agreement for tally in tallies))
            undo = None
            if step % config.checkpoint.every == 0 or step == config.steps:
                save(run, session, learner, progress)
                saved = step
            yield report
            if report.alarm and config.guard.stop_on_collapse:
                raise CollapseError(f"step {step} looks like a collapse: {report.alarm}")
    finally:
        if undo is not None:
            progress.step, progress.history, state = undo
            if state is not None:
                learner.restore(state)
        if progress.step > saved:
            save(run, session, learner, progress)


class Labellers:
    """Elect labels for problems where others than the learning minds do so (`vote.labels`)."""

    def __init__(self, session: Session, learner: Learner, known: dict[str, str | None]) -> None:
        """`known` holds the base model's labels so far, and grows."""
        self.session = session
        self.learner = learner
        self.known = known

    def elect(self, problems: Sequence[Problem], step: int) -> Labels | None:
        """Labels of these problems by id; None where each group labels itself."""
        kind = self.session.config.vote.labels
        if kind == "minds":
            return None
        if kind == "average":
            return self._vote(self.learner.averaged(), problems, MEAN, step)
        new = [problem for problem in problems if problem.id not in self.known]
        self.known |= self._vote(self.session.policy.as_base(), new, None, 0)
        return self.known

    def _vote(
        self, weights: AbstractContextManager[None], problems: Sequence[Problem], mind: Mind | None, step: int
    ) -> dict[str, str | None]:
        """Labels of the policy that it is inside `weights`."""
        config, backend = self.session.config, self.session.backend
        count = config.vote.label_rollouts or config.group_size
        try:
            with weights:
                backend.refresh()
                groups = sample(
                    backend, self.session.prompts, problems, [mind], count, config.seed, step, stream="label"
                )
                return {group.problem.id: elect(group, self.session.rules) for group in groups}
        finally:
            # An engine with weights of its own would go on with those of the labellers.
            backend.refresh()


def save(run: RunDirectory, session: Session, learner: Learner, progress: Progress) -> None:
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
    return History(ProblemState(**row) for row in checkpoint.read_lines(folder / checkpoint.PROBLEMS))


def resume(run: RunDirectory, session: Session) -> Progress:
    """Load the newest whole checkpoint into the session's policy and cut metrics back to it, or begin anew."""
    step = checkpoint.latest(run)
    rows = checkpoint.truncate_lines(run.metrics, step or 0)
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


class Clock:
    """Seconds spent on each part of a step."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.spent = {"time/sample": 0.0, "time/vote": 0.0, "time/learn": 0.0}

    def span(self, key: str) -> "Span":
        return Span(self.spent, key)

    def timed(self, key: str, items: Iterator[Any]) -> Iterator[Any]:
        """Pass `items` on, counting the time that making each takes."""
        while True:
            with self.span(key):
                item = next(items, None)
            if item is None:
                return
            yield item

    def times(self) -> dict[str, float]:
        # Votes are cast while the next rollouts are sampled: their time is what is left to wait for after that.
        spent = self.spent | {"time/vote": self.spent["time/vote"] - self.spent["time/sample"]}
        return {**spent, "time/step": time.perf_counter() - self.start}


class Span:
    def __init__(self, spent: dict[str, float], key: str) -> None:
        self.spent, self.key = spent, key

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.spent[self.key] += time.perf_counter() - self.start
