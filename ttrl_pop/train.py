"""The loop: read → sample → vote → learn → report. A generator; whoever iterates decides how to show it.

Closing the generator or interrupting it (Ctrl-C, a closed pipe) saves the steps that are finished; an update cut short
is undone first. A process that is killed resumes from its newest whole checkpoint and repeats the rest, on a CPU to the
byte: every draw is a function of (seed, step, problem, mind, sample).
"""

from collections.abc import Generator
from dataclasses import replace
from itertools import islice
from statistics import fmean

from ttrl_pop import randomness
from ttrl_pop.errors import CollapseError
from ttrl_pop.learn.learner import Learner
from ttrl_pop.learn.trained import LearnerState
from ttrl_pop.report.rows import metrics_row, rollout_rows
from ttrl_pop.report.step import step_report
from ttrl_pop.run.clock import Clock
from ttrl_pop.run.history import History, group_weight
from ttrl_pop.run.labellers import Labellers
from ttrl_pop.run.progress import Progress, save
from ttrl_pop.run.session import Session
from ttrl_pop.store import checkpoint, files
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.types import StepReport, Tally


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
    problems = session.problems
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
            groups = session.sample(batch, minds, samples, step)
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
                session.gold,
                session.grader.same,
                clock.times(),
                history.flip_share(progress.history, (problem.id for problem in batch)),
                session.grader.timeouts - timeouts,
            )
            report = replace(report, alarm=progress.watch.see(report.metrics))
            files.write_lines(run.rollouts(step), (row for tally in tallies for row in rollout_rows(tally)))
            files.append_line(run.metrics, metrics_row(report))
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
