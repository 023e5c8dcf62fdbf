"""The loop: read → sample → vote → learn → report. A generator; whoever iterates decides how to show it.

Closing the generator or interrupting it (Ctrl-C, a closed pipe) saves the steps that are finished; an update cut short
is undone first. A process that is killed resumes from its newest whole checkpoint and repeats the rest, on a CPU to the
byte: every draw is a function of (seed, step, problem, mind, sample).
"""

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any

from ttrl_pop import checkpoint, streams
from ttrl_pop.checkpoint import RunDirectory
from ttrl_pop.learn import Learner, LearnerState
from ttrl_pop.report import metrics_row, rollout_rows, step_report
from ttrl_pop.sample import sample
from ttrl_pop.session import Session
from ttrl_pop.types import StepReport, Tally


@dataclass(slots=True)
class Progress:
    """What a checkpoint keeps beside tensors."""

    step: int = 0
    """Steps done."""
    best_step: int | None = None
    best_agreement: float = 0.0
    bad_in_a_row: int = 0

    def measured(self, run: RunDirectory, step: int, agreement: float) -> None:
        """Note the agreement of the checkpoint of `step`, which is known once its policy has been sampled."""
        if agreement > self.best_agreement and run.checkpoint(step).exists():
            self.best_step, self.best_agreement = step, agreement
            checkpoint.point_best(run, step)


def train(session: Session, run: RunDirectory, progress: Progress) -> Generator[Tally | StepReport, None, None]:
    """Train from `progress.step` to the configured number of steps, yielding each tally and then the step's report."""
    config, policy, backend = session.config, session.policy, session.backend
    learner = Learner(policy, config)
    if progress.step:
        learner.load_state_tensors(checkpoint.load_optimizer(run.checkpoint(progress.step)))
        learner.bad_in_a_row = progress.bad_in_a_row
    problems = session.problems.problems
    order = islice(streams.batches(config.seed, len(problems), config.problems_per_step), progress.step, config.steps)
    saved = progress.step
    # While an update is under way: the step to fall back to, and its state where no checkpoint has it.
    undo: tuple[int, LearnerState | None] | None = None
    try:
        for step, indices in enumerate(order, start=progress.step + 1):
            clock = Clock()
            minds = policy.population.spawn(config.seed, step, config.population.minds)
            groups = sample(
                backend,
                session.prompts,
                [problems[i] for i in sorted(indices)],
                minds,
                config.population.samples_per_mind,
                config.seed,
                step,
            )
            tallies = []
            for group in clock.timed("time/sample", groups):
                with clock.span("time/vote"):
                    tally = session.tally(group)
                tallies.append(tally)
                yield tally
            tallies.sort(key=lambda tally: tally.group.problem.index)
            progress.measured(run, step - 1, fmean(tally.agreement for tally in tallies))
            undo = (progress.step, learner.snapshot() if progress.step > saved else None)
            with clock.span("time/learn"):
                update = learner.learn(tallies, step)
                backend.refresh()
            report = step_report(
                step,
                tallies,
                update,
                policy.population.metrics(),
                session.answers,
                session.grader.same,
                clock.times(),
            )
            checkpoint.write_lines(run.rollouts(step), (row for tally in tallies for row in rollout_rows(tally)))
            checkpoint.append_line(run.metrics, metrics_row(report))
            # A step counts once its row is there; one cut short before is repeated at resume.
            progress.step = step
            undo = None
            if step % config.checkpoint.every == 0 or step == config.steps:
                save(run, session, learner, progress)
                saved = step
            yield report
    finally:
        if undo is not None:
            progress.step, state = undo
            if state is not None:
                learner.restore(state)
        if progress.step > saved:
            save(run, session, learner, progress)


def save(run: RunDirectory, session: Session, learner: Learner, progress: Progress) -> None:
    state: dict[str, Any] = {
        "best_step": progress.best_step,
        "best_agreement": progress.best_agreement,
        "bad_in_a_row": learner.bad_in_a_row,
    }
    checkpoint.save(run, progress.step, session.policy, learner.state_tensors(), state)
    checkpoint.prune(run, session.config.checkpoint.keep, progress.best_step)


def resume(run: RunDirectory, session: Session) -> Progress:
    """Load the newest whole checkpoint into the session's policy and cut metrics back to it, or begin anew."""
    step = checkpoint.latest(run)
    checkpoint.truncate_lines(run.metrics, step or 0)
    if step is None:
        return Progress()
    folder = run.checkpoint(step)
    state = checkpoint.load_state(folder)
    checkpoint.load_policy(folder, session.policy)
    return Progress(step, state["best_step"], state["best_agreement"], state["bad_in_a_row"])


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
        return {**self.spent, "time/step": time.perf_counter() - self.start}


class Span:
    def __init__(self, spent: dict[str, float], key: str) -> None:
        self.spent, self.key = spent, key

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.spent[self.key] += time.perf_counter() - self.start
