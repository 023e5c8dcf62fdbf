"""`ttrl-pop run`: train, answer every problem, say what came of it."""

import json
import os
import shlex
import shutil
import sys
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

from rich.text import Text

from ttrl_pop.cli import advice, interrupts
from ttrl_pop.cli.display import open_display
from ttrl_pop.cli.display.base import Display
from ttrl_pop.cli.display.console import console_on
from ttrl_pop.cli.display.logged import Logged
from ttrl_pop.cli.display.tables import answers_table, outcomes_line, summary_table
from ttrl_pop.cli.opening import PreparedRun, Stage
from ttrl_pop.cli.os_errors import refusal
from ttrl_pop.cli.printing import print_rows
from ttrl_pop.config_file import dump_config
from ttrl_pop.errors import CollapseError, RankError, TtrlPopError, UsageError
from ttrl_pop.fit.prepare import prepare
from ttrl_pop.read.rows import Notice, unsaid
from ttrl_pop.report.estimators import mean
from ttrl_pop.report.gold import label_correct, outcome_table, rollout_accuracy
from ttrl_pop.report.rows import answer_row, from_metrics_row, metrics_row
from ttrl_pop.run import environment
from ttrl_pop.run.lessons import CutOff, Lessons
from ttrl_pop.run.losses import CALIBRATION, report_losses
from ttrl_pop.run.progress import Progress, fall_back, resume
from ttrl_pop.run.session import Session
from ttrl_pop.run.survey import survey
from ttrl_pop.run.verdict import judge
from ttrl_pop.run.workload import workload
from ttrl_pop.store import checkpoint, files, identity, reading
from ttrl_pop.store.directory import FIT, RunDirectory
from ttrl_pop.store.identity import CONFIG
from ttrl_pop.store.log import Log
from ttrl_pop.text import safe
from ttrl_pop.train import train
from ttrl_pop.types import Phase, StepReport, Tally

TextRows: TypeAlias = Callable[[Session, Sequence[Tally]], Iterable[Mapping[str, Any]]]
"""Makes rows of the texts of some problems, as `ttrl_pop.study.texts.text_rows` does."""

LARGE_SET = 128
"""Problems beyond which label-free training was found to collapse (arXiv 2603.08660)."""

LONGEST_PATH = 4096
"""Characters of a path that are printed."""


def run(opened: Callable[[Stage], PreparedRun], quiet: bool) -> None:
    """Open a run, train, answer, summarise.

    Args:
        opened: opens it, telling what may take long as it begins.

    Raises:
        UsageError: as `opened` has it, or another process works in the run directory.
        TtrlPopError: the run directory takes no more; what was saved before is whole.
    """
    with open_display(quiet, sys.stderr) as shown:
        prepared = opened(shown.phase)
        with closing(conduct(prepared, shown, quiet, shlex.join(["ttrl-pop", *sys.argv[1:]]))) as reports:
            # In one call: an interruption between two reports comes up inside, where it is told what is saved.
            deque(reports, maxlen=0)
    run_dir = prepared.run
    if prepared.session.config.answers:
        try:
            print_rows(list(files.read_lines(run_dir.answers)), answers_table)
        except TtrlPopError as error:
            raise TtrlPopError(f"{error}; the answers are in {run_dir.answers}") from error
    if not quiet:
        _print_summary(prepared)


def conduct(
    prepared: PreparedRun, shown: Display, quiet: bool, call: str, texts: TextRows | None = None
) -> Generator[StepReport, None, None]:
    """Do all that a run does and yield a report after each step: baseline, steps, answers. Closed early, it saves the
    steps that are done.

    Args:
        shown: what is told of all that; the run's log keeps it too.
        call: how this process was asked for the run, for the log.
        texts: makes the rows of `RunDirectory.texts`, which is written before the final answers; None: there is none.

    Raises:
        UsageError: another process works in the run directory.
        TtrlPopError: the run directory takes no more; what was saved before is whole.
    """
    session, run_dir = prepared.session, prepared.run
    with (
        closing(session.backend),
        run_dir.lock(),
        _logged(prepared, shown, call) as display,
        _early_end(run_dir, display),
    ):
        yield from _work(prepared, display, quiet, texts)


def _work(prepared: PreparedRun, display: Display, quiet: bool, texts: TextRows | None) -> Iterator[StepReport]:
    """All that is still to do of a run; yields the report of each step."""
    session, run_dir = prepared.session, prepared.run
    config = session.config
    if prepared.outdated:
        # In this order: answers of fewer steps must not outlive a kill in between.
        files.remove(run_dir.answers)
        files.remove(run_dir.holdout_answers)
        files.remove(run_dir.verdict)
    if prepared.changed:
        identity.record(run_dir, CONFIG, dump_config(config).encode())
    notices = [] if prepared.notice is None else [prepared.notice]
    progress = resume(run_dir, session, notices.append) if prepared.resumed else Progress()
    survey_before = config.baseline and not progress.step and not _has(run_dir, run_dir.baseline, notices.append)
    surveys = survey_before + (config.answers and not _has(run_dir, run_dir.answers))
    held = len(session.held.problems) if session.held else 0
    load = workload(config, len(session.problems), progress.step, len(progress.labels), surveys, held)
    display.begin(run_dir.path.name, config.steps, progress.step, load, session.backend.meter)
    for text in (*session.notices, *notices):
        display.notice(text)
    if prepared.resumed and (moved := environment.move(run_dir, config.backend)):
        display.warning(moved)
    report_losses(run_dir, progress, config.checkpoint, display.notice)
    _warn_of_size(session, display)
    try:
        _prepare(session, run_dir, display)
    except UsageError:
        if not prepared.resumed:
            shutil.rmtree(run_dir.path)
        raise
    if survey_before:
        rows = _survey(session, run_dir, run_dir.baseline, display, "before training: answering")
        _record(run_dir, run_dir.baseline, rows)
    yield from _train(prepared, progress, display, quiet)
    if config.steps:
        _conclude(prepared, progress, display)
    if session.held is not None and not _has(run_dir, run_dir.holdout_answers, display.notice):
        text, path = "problems held out: answering", run_dir.holdout_answers
        _record(run_dir, path, _survey(session.held, run_dir, path, display, text))
    if config.answers and not _has(run_dir, run_dir.answers, display.notice):
        same = session.policy.version == 0 and texts is None
        if same and all(_has(run_dir, path) for path in (run_dir.baseline, run_dir.spent(run_dir.baseline))):
            # The same minds of the same policy, and each rollout has a stream of its own: they would say it again.
            display.notice("no update has changed the policy: its answers are those from before training")
            # What they stand for is what they would have taken.
            spent = reading.read_bytes(run_dir.spent(run_dir.baseline))
            identity.record(run_dir, run_dir.spent(run_dir.answers).name, spent)
            identity.record(run_dir, run_dir.answers.name, reading.read_bytes(run_dir.baseline, reading.LARGE))
        else:
            text = "after training: answering" if config.steps else "answering"
            _record(run_dir, run_dir.answers, _survey(session, run_dir, run_dir.answers, display, text, texts))


def _conclude(prepared: PreparedRun, progress: Progress, display: Display) -> None:
    """Say what the run has come to and, where that is a collapse, go back to the last sound checkpoint."""
    session, run_dir = prepared.session, prepared.run
    session.grader.forget()
    moved = progress.history.moved(session.grader.same)
    verdict = judge(progress.metrics, progress.history, moved, len(session.problems))
    step: int | None = progress.step
    if progress.step < session.config.steps:
        display.notice(f"labels no longer move: the run ends after step {progress.step} of {session.config.steps}")
    if verdict.kind != "collapsing":
        display.notice(f"verdict: {verdict}")
    elif (step := fall_back(run_dir, session, progress)) is None:
        step = progress.step
        display.warning(f"verdict: {verdict}; no sound checkpoint is kept, and answers are those of step {step}")
    else:
        display.warning(f"verdict: {verdict}; answers and best are those of step {step}, the last sound checkpoint")
    row = {"verdict": verdict.kind, "why": verdict.why, "steps": progress.step, "answers_of_step": step}
    identity.record(run_dir, run_dir.verdict.name, (json.dumps(row) + "\n").encode())


@contextmanager
def _logged(prepared: PreparedRun, shown: Display, call: str) -> Iterator[Logged]:
    """A display over `shown` that keeps in the run's log, too, how this process began and how it ended."""
    display = Logged(shown, Log(prepared.run.log))
    display.keep("info", f"{'goes on' if prepared.resumed else 'begins'}: {call}")
    for text in prepared.told:
        display.keep("notice", text)
    try:
        with advice.overheard(lambda text: display.keep("warning", text)):
            yield display
    except KeyboardInterrupt:
        display.keep("info", "interrupted")
        raise
    except GeneratorExit:
        display.keep("info", "left")
        raise
    except TtrlPopError as error:
        display.keep("error", str(error))
        raise
    except Exception:
        display.keep("error", traceback.format_exc())
        raise
    display.keep("info", "done")


@contextmanager
def _early_end(run_dir: RunDirectory, display: Display) -> Iterator[None]:
    """Say of a run that ends before its time what of it is saved, and how to go on.

    Raises:
        KeyboardInterrupt: as it came.
        CollapseError: with what is kept.
        RankError: with what is saved.
        TtrlPopError: the system refuses something, as a disk that takes no more; in place of its error.
    """
    try:
        yield
    except KeyboardInterrupt:
        display.notice(f"stopped; {_saved(run_dir)}")
        raise
    except CollapseError as error:
        best = run_dir.path / "best"
        kept = f"; {best} is the last sound checkpoint" if best.exists() else ""
        raise CollapseError(
            f"{error}; saved up to step {checkpoint.latest(run_dir)} in {run_dir.path}{kept}. To go on all the same: "
            "--resume with --set guard.stop_on_collapse=false"
        ) from None
    except RankError as error:
        raise RankError(f"{error}; {_saved(run_dir)}", error.exit_code) from error
    except TtrlPopError:
        raise
    except Exception as error:
        if (line := refusal(error, run_dir.path)) is None:
            raise
        raise TtrlPopError(f"{line}; {_saved(run_dir)}") from error


def _saved(run_dir: RunDirectory) -> str:
    """Step of the newest whole checkpoint, and the command that goes on from it."""
    hint = f"ttrl-pop run --resume {shlex.quote(str(run_dir.path))}"
    return f"saved up to step {checkpoint.latest(run_dir) or 0}; go on with: {hint}"


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """One figure of all rows that have it, verdicts as 0 and 1."""
    return [float(row[key]) for row in rows if row.get(key) is not None]


def _warn_of_size(session: Session, display: Display) -> None:
    count = len(session.problems)
    if count > LARGE_SET:
        display.notice(
            f"{count} problems: label-free training was found safe up to about {LARGE_SET} (arXiv 2603.08660); "
            "beyond, check with ttrl-pop eval --compare that answers did not collapse"
        )


def _prepare(session: Session, run_dir: RunDirectory, display: Display) -> None:
    if found := prepare(session, display.notice, display.phase, run_dir.path / FIT):
        identity.record(run_dir, CALIBRATION, (json.dumps(found) + "\n").encode())


def _has(run_dir: RunDirectory, path: Path, notice: Notice = unsaid) -> bool:
    """Whether the file of answers `path` is there, as the run wrote it."""
    if not os.path.lexists(path):
        return False
    if not (found := _flaw(run_dir, path)):
        return True
    notice(f"{path}: {found}; the problems are answered again")
    return False


def _flaw(run_dir: RunDirectory, path: Path) -> str | None:
    known = identity.load(run_dir)
    return identity.flaw(run_dir, known, path.name) if path.name in known.files else "was not written by this run"


def _record(run_dir: RunDirectory, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    identity.record(run_dir, path.name, files.encode_lines(path, rows))


def _train(prepared: PreparedRun, progress: Progress, display: Display, quiet: bool) -> Iterator[StepReport]:
    """Run the loop; yields the report of each of its steps."""
    session = prepared.session
    answers, same = session.gold, session.grader.same
    first = doubt = None
    lessons, cut_off = (
        Lessons(session.config),
        CutOff(session.config.sampling.max_new_tokens, session.config.learn.mask_truncated),
    )
    for row in progress.metrics:
        report = from_metrics_row(row)
        first = first or report
        display.step(report)
        lessons.see(report)
    with (
        _tracked(prepared, progress, display, quiet) as track,
        closing(train(session, prepared.run, progress)) as events,
    ):
        for event in events:
            interrupts.check()
            match event:
                case Phase():
                    display.phase(f"step {event.step}: {event.name}", event.rollouts, event.work)
                case Tally():
                    display.tally(event, label_correct(event, answers, same))
                    if doubt is None and (doubt := session.grader.doubt(event.answers_G)):
                        display.notice(f"problem {event.group.problem.id}: {doubt}")
                    if first is None:
                        cut_off.see(event)
                case StepReport():
                    display.step(event)
                    track(metrics_row(event))
                    told = lessons.see(event) or (cut_off.notice() if first is None else None)
                    if told:
                        display.warning(told)
                    first = first or event
                    yield event
    if conclusion := lessons.conclusion():
        display.warning(conclusion)


def _tracked(
    prepared: PreparedRun, progress: Progress, display: Display, quiet: bool
) -> AbstractContextManager[Callable[[Mapping[str, Any]], None]]:
    if not prepared.session.config.track:
        return nullcontext(lambda row: None)
    # Not before it is asked for: accelerate takes a while to start.
    from ttrl_pop.cli.trackers import tracked

    return tracked(prepared.run, prepared.session.config, progress.metrics, display.warning, quiet)


def _survey(
    session: Session, run_dir: RunDirectory, path: Path, display: Display, text: str, texts: TextRows | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of the file of answers `path`; what they took is recorded before the last of them is out."""
    answers, same = session.gold, session.grader.same
    display.phase(text, len(session.problems) * session.config.group_size, "survey")
    rollouts = tokens = 0
    written: list[Mapping[str, Any]] = []
    for tally in survey(session):
        interrupts.check()
        display.tally(tally, label_correct(tally, answers, same))
        rollouts += len(tally.answers_G)
        tokens += sum(len(rollout.completion_ids) for rollout in tally.group.rollouts_G)
        written += texts(session, [tally]) if texts else []
        yield {**answer_row(tally, answers, same), **_accuracy(session, tally)}
    if texts:
        identity.record(run_dir, run_dir.texts.name, files.encode_lines(run_dir.texts, written))
    spent = {"rollouts": rollouts, "tokens": tokens}
    identity.record(run_dir, run_dir.spent(path).name, (json.dumps(spent) + "\n").encode())


def _accuracy(session: Session, tally: Tally) -> dict[str, float]:
    accuracy = rollout_accuracy(tally, session.gold, session.grader.same)
    return {} if accuracy is None else {"accuracy": accuracy}


def _print_summary(prepared: PreparedRun) -> None:
    """Before and after, and where everything is, on stderr."""
    run_dir = prepared.run
    console = console_on(sys.stderr)
    outcomes: dict[str, int] = {}
    if not any(_flaw(run_dir, path) for path in (run_dir.baseline, run_dir.answers)):
        before, after = (list(files.read_lines(p)) for p in (run_dir.baseline, run_dir.answers))
        keys = {"agreement": "agreement", "accuracy": "rollout accuracy", "correct": "majority accuracy"}
        rows = [(name, mean(_column(before, key)), mean(_column(after, key))) for key, name in keys.items()]
        title = f"all {len(after)} problems, {prepared.session.config.group_size} rollouts each"
        heads = "before", "after"
        outcomes = outcome_table(
            *({row["id"]: row["correct"] for row in part if "correct" in row} for part in (before, after))
        )
    elif run_dir.metrics.exists() and (steps := list(files.read_lines(run_dir.metrics))):
        first, last = (from_metrics_row(steps[index]) for index in (0, -1))
        keys = {
            "vote/agreement": "agreement",
            "rollout/accuracy": "rollout accuracy",
            "vote/label_accuracy": "majority accuracy",
        }
        rows = [(name, first.metrics.get(key), last.metrics.get(key)) for key, name in keys.items()]
        title, heads = "problems of the step", (f"step {first.step}", f"step {last.step}")
    else:
        return
    known = [row for row in rows if row[1:] != (None, None)]
    console.print(summary_table(title, known, *heads))
    if any(outcomes.values()):
        console.print(outcomes_line(outcomes))
    newest = checkpoint.latest(run_dir)
    saved = checkpoint.answering_step(run_dir, newest) or newest
    paths = [run_dir.metrics, run_dir.answers, run_dir.checkpoint(saved) / "adapter" if saved else None]
    for path in paths:
        if path is not None and path.exists():
            console.print(Text(safe(str(path), LONGEST_PATH)), soft_wrap=True)
