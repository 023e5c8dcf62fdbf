"""The loop: read → sample → vote → learn → report. A generator; whoever iterates decides how to show it.

Closing the generator or interrupting it (Ctrl-C, a closed pipe) saves the steps that are finished and nothing of the
one under way. A process that is killed resumes from its newest whole checkpoint and repeats the rest, on a CPU to the
byte: every draw is a function of (seed, step, problem, mind, sample).
"""

from collections.abc import Generator, Iterator
from itertools import islice
from statistics import fmean

from ttrl_pop import randomness
from ttrl_pop.errors import CollapseError
from ttrl_pop.learn.learner import Learner
from ttrl_pop.report.step import step_report
from ttrl_pop.run import guard
from ttrl_pop.run.clock import Clock
from ttrl_pop.run.labellers import Labellers
from ttrl_pop.run.lessons import skipped
from ttrl_pop.run.progress import Keeper, Progress
from ttrl_pop.run.session import Session
from ttrl_pop.run.survey import held_out
from ttrl_pop.run.verdict import settled
from ttrl_pop.run.workload import measures
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.types import Phase, Problem, StepReport, Tally


def train(session: Session, run: RunDirectory, progress: Progress) -> Generator[Phase | Tally | StepReport, None, None]:
    """Train from `progress.step` to the configured number of steps, yielding phases, tallies and reports.

    Raises:
        CollapseError: the alarm went off and the configuration asks to stop then; a checkpoint has been saved.
    """
    config, policy, grader = session.config, session.policy, session.grader
    learner = Learner(policy, config, session.ranks)
    keeper = Keeper(run, session, learner, progress)
    labellers = Labellers(session, learner, progress.labels)
    try:
        for step, batch in remaining(session, progress.step):
            if config.guard.until_settled and settled(progress.metrics, progress.history, len(session.problems)):
                break
            held = None
            if session.held is not None and measures(config, step):
                rollouts = len(session.held.problems) * config.group_size
                yield Phase(step, "answering problems held out", "survey", rollouts)
                held = held_out(session.held)
            clock = Clock()
            # What was given up in the step before has no say in what this one compares with gold.
            grader.forget()
            with keeper.step():
                if others := labellers.rollouts(batch):
                    yield Phase(step, "electing labels", "sample", others)
                with clock.span("time/sample"):
                    labels = labellers.elect(batch, step)
                yield Phase(step, "sampling", "sample", len(batch) * config.group_size)
                minds = policy.population.spawn(config.seed, step, config.population.minds)
                groups = session.sample(batch, minds, config.population.samples_per_mind, step)
                tallies = []
                for tally in clock.timed("time/vote", session.tallies(clock.timed("time/sample", groups), labels)):
                    tallies.append(tally)
                    yield tally
                tallies.sort(key=lambda tally: tally.group.problem.index)
                # What was asked to compare with gold has no say in what is learned.
                grader.forget()
                history = progress.history.after(tallies, step, grader.same)
                weights = guard.weights(history, [problem.id for problem in batch], config.guard, config.seed, step)
                bonuses = guard.bonuses(tallies, history, config.guard)
                causes = skipped(tallies, weights, config.learn)
                learned = (len(batch) - sum(causes.values())) * (config.learn.rollouts or config.group_size)
                yield Phase(step, "learning", "learn", learned)
                with clock.span("time/learn"):
                    update = learner.learn(tallies, step, weights, bonuses)
                    session.backend.refresh()
                report = step_report(
                    step=step,
                    tallies=tallies,
                    update=update,
                    population=policy.population.metrics(),
                    answers=session.gold,
                    same=grader.same,
                    times=clock.times(),
                    first_label=fmean(history.first_share(tally, grader.same) for tally in tallies),
                    flips=history.flip_share(progress.history, (problem.id for problem in batch)),
                    skipped=causes,
                    held=held,
                    alarm=progress.watch.see,
                )
                keeper.finish(report, tallies, history)
            keeper.save_if_due()
            yield report
            if report.alarm and config.guard.stop_on_collapse:
                raise CollapseError(f"step {step} looks like a collapse: {report.alarm}")
    finally:
        keeper.save()


def remaining(session: Session, done: int) -> Iterator[tuple[int, list[Problem]]]:
    """Each step that is still to do with its problems, in the order of the input."""
    config, problems = session.config, session.problems
    batches = randomness.batches(config.seed, len(problems), config.problems_per_step)
    for step, indices in enumerate(islice(batches, done, config.steps), start=done + 1):
        yield step, [problems[i] for i in sorted(indices)]
