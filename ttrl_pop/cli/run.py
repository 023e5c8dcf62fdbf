"""What each command does once its arguments are parsed: prepare, iterate, show, write."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from rich.text import Text

from ttrl_pop.cli import inputs, interrupts
from ttrl_pop.cli.display.live import (
    Display,
    answers_table,
    console_on,
    measures_table,
    open_display,
    outcomes_line,
    safe,
    states_table,
    summary_table,
)
from ttrl_pop.cli.inputs import Overrides, ReadingInputs, RunInputs
from ttrl_pop.cli.stdout import print_rows
from ttrl_pop.config import ProblemsConfig, dump_config, load_config
from ttrl_pop.errors import CollapseError, UsageError
from ttrl_pop.fit.sigma import Calibration, calibrate
from ttrl_pop.read.problems import read_problems, write_problems
from ttrl_pop.report.measures import Measures, bootstrap_difference, outcome_table
from ttrl_pop.report.step import answer_row, from_metrics_row, label_correct, rollout_rows
from ttrl_pop.run.history import group_weight
from ttrl_pop.run.session import Session, check_trainable, open_session
from ttrl_pop.run.survey import summarise, survey
from ttrl_pop.store import checkpoint
from ttrl_pop.store.checkpoint import RunDirectory
from ttrl_pop.train import Progress, load_history, resume, train
from ttrl_pop.types import StepReport, Tally
from ttrl_pop.vote.rules import build_grader

LARGE_SET = 128
"""Problems beyond which label-free training was found to collapse (arXiv 2603.08660)."""
CHANGEABLE = ("steps", "guard.stop_on_collapse")
"""Settings that a run may go on with at other values."""
LONGEST_PATH = 4096
"""Characters of a path that are printed."""


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A run that has been checked and whose directory exists."""

    session: Session
    run: RunDirectory
    resumed: bool
    changed: bool = False
    """The configuration differs from the one in the run directory."""


def create_run(given: RunInputs) -> PreparedRun:
    """Load the model and, where it goes with the inputs, create the run directory.

    Raises:
        UsageError: nothing has been written.
    """
    config, problems = given.config, given.problems
    check_trainable(config)
    session = open_session(config, problems, adapter=True)
    identity = {"model": session.policy.fingerprint, "problems": problems.fingerprint}
    # "auto" means another type on another device, with which the weights would not be the same; and rollouts that are
    # voted on again have no chat template beside them.
    voting = config.vote.model_copy(update={"thinking": session.rules.thinking})
    config = session.config.model_copy(update={"dtype": session.policy.dtype_name, "vote": voting})
    files = {
        "config.toml": dump_config(config),
        "problems.jsonl": "".join(f"{line}\n" for line in write_problems(problems.problems)),
        "gold.jsonl": "".join(json.dumps({"id": i, "answer": a}) + "\n" for i, a in problems.answers.items()),
        "identity.json": json.dumps(identity, indent=1) + "\n",
    }
    return PreparedRun(session, _create(given, files), resumed=False)


def prepare_resume(
    path: Path,
    source: str | None,
    gold: str | None,
    config_file: Path | None,
    overrides: Overrides,
    settings: Sequence[str],
) -> PreparedRun:
    """Open a run directory to go on with it: same configuration, model and problems.

    Raises:
        UsageError: it is no run directory, or anything but the number of steps has changed. Nothing has been written.
    """
    run = RunDirectory(path)
    identity = _identity(run, f"--resume {path}")
    if config_file is not None:
        raise UsageError("--resume takes its configuration from the run directory; leave --config out")
    if gold is not None:
        raise UsageError(
            "--resume takes its gold answers from the run directory; leave --gold out (ttrl-pop eval takes other ones)"
        )
    saved = load_config(run.config, {})
    config = inputs.configured(run.config, overrides, settings)
    for key, before, now in inputs.changes(saved, config):
        if key not in CHANGEABLE and not key.startswith("problems."):
            raise UsageError(f"--resume {path}: {key} was {before!r}, cannot become {now!r}; start a new run")
    done = checkpoint.latest(run) or 0
    if config.steps < done:
        raise UsageError(f"--resume {path}: the run has done {done} steps; --steps cannot go back to {config.steps}")
    inputs.check_writable(path, f"--resume {path}")
    # Before the model is loaded; the lock that counts is the one that `run` holds.
    with run.lock():
        pass
    if source is not None and read_problems(source, config.problems).fingerprint != identity["problems"]:
        raise UsageError(f"--resume {path}: {source} holds other problems than the run; leave PROBLEMS out")
    stored = read_problems(str(run.problems), ProblemsConfig(), str(run.gold) if run.gold.is_file() else None)
    if stored.fingerprint != identity["problems"]:
        raise UsageError(f"--resume {path}: {run.problems.name} in it has been changed; start a new run")
    # The flags for reading were for PROBLEMS of this command, not for the run.
    config = saved.model_copy(update={"steps": config.steps, "guard": config.guard})
    session = open_session(config, stored, adapter=True)
    _check_model(session, identity, f"--resume {path}")
    return PreparedRun(session, run, resumed=True, changed=config != saved)


def run(prepared: PreparedRun, quiet: bool) -> None:
    """Train, answer, summarise.

    Raises:
        UsageError: another process works in the run directory.
    """
    session, run_dir = prepared.session, prepared.run
    config = session.config
    with run_dir.lock(), open_display(quiet, sys.stderr) as display:
        if prepared.changed:
            # In this order: answers of fewer steps must not outlive a kill in between.
            run_dir.answers.unlink(missing_ok=True)
            checkpoint.write_atomic(run_dir.config, dump_config(config).encode())
        progress = resume(run_dir, session) if prepared.resumed else Progress()
        display.begin(run_dir.path.name, config.steps, progress.step)
        _warn_of_size(session, display)
        try:
            try:
                _calibrate(session, run_dir, display)
            except UsageError:
                if not prepared.resumed:
                    shutil.rmtree(run_dir.path)
                raise
            if config.baseline and not progress.step and not run_dir.baseline.exists():
                rows = list(_survey(session, display, "before training: answering"))
                checkpoint.write_lines(run_dir.baseline, rows)
            first, last = _train(prepared, progress, display)
            if config.answers and not run_dir.answers.exists():
                rows = list(_survey(session, display, "after training: answering"))
                checkpoint.write_lines(run_dir.answers, rows)
        except KeyboardInterrupt:
            hint = f"ttrl-pop run --resume {shlex.quote(str(run_dir.path))}"
            display.notice(f"stopped; saved up to step {checkpoint.latest(run_dir) or 0}; go on with: {hint}")
            raise
        except CollapseError as error:
            best = (
                f"; {run_dir.path / 'best'} is where minds agreed most before"
                if (run_dir.path / "best").exists()
                else ""
            )
            raise CollapseError(
                f"{error}; saved up to step {checkpoint.latest(run_dir)} in {run_dir.path}{best}. To go on all the "
                "same: --resume with --set guard.stop_on_collapse=false"
            ) from None
    if config.answers:
        print_rows(list(checkpoint.read_lines(run_dir.answers)), answers_table)
    if not quiet:
        _print_summary(prepared, first, last)


def evaluate(given: ReadingInputs, compare: bool, quiet: bool) -> None:
    """Measure the run, else the base model, and print a row; `compare` measures both and adds their difference.

    Raises:
        UsageError: the model or the run does not go with the inputs.
    """
    session, folder = _open_for_reading(given)
    noise = given.noise
    rows: list[dict[str, Any]] = []
    measured: dict[str, Measures] = {}
    with open_display(quiet, sys.stderr) as display:
        display.begin(f"eval {given.source}", 0, 0)
        if folder is None or compare:
            with session.policy.as_base():
                measured["base"] = _measure(session, display, "base", noise)
            rows.append(_measures_row("base", 0, session, measured["base"], noise))
        if folder is not None:
            checkpoint.load_policy(folder, session.policy)
            measured["run"] = _measure(session, display, "run", noise)
            step = checkpoint.load_state(folder)["step"]
            rows.append(_measures_row("run", step, session, measured["run"], noise))
    if compare:
        rows.append(_difference_row(session, measured["base"], measured["run"]))
    print_rows(rows, measures_table)


def sample(given: ReadingInputs, quiet: bool) -> None:
    """Print rollouts, a problem's as soon as the last of them and those of the problems before it are written.

    Raises:
        UsageError: the model or the run does not go with the inputs.
    """
    session, folder = _open_for_reading(given)
    if folder is not None:
        checkpoint.load_policy(folder, session.policy)
    # On a terminal the rows themselves show how far it is; a live view would be drawn among them.
    with open_display(quiet or sys.stdout.isatty(), sys.stderr) as display:
        display.begin(f"sample {given.source}", 0, 0)
        if session.policy.population.needs_calibration:
            _announce(calibrate(session), display)
        display.phase("sampling", len(session.problems.problems))
        for tally in survey(session, given.noise):
            interrupts.check()
            display.tally(tally, None)
            for row in rollout_rows(tally):
                del row["reward"]
                print(json.dumps(row))
            sys.stdout.flush()


def problems(path: Path) -> None:
    """Print what a run knows of each problem that it has visited, in the order of first visits.

    Raises:
        UsageError: `path` is neither a run with a checkpoint nor a checkpoint.
    """
    folder, run_dir = checkpoint.find(path)
    history = load_history(folder)
    config = load_config(run_dir.config, {})
    same = build_grader(config.vote).same
    gold = {row["id"]: row["answer"] for row in checkpoint.read_lines(run_dir.gold)} if run_dir.gold.exists() else {}
    rows: list[dict[str, Any]] = []
    for state, row in zip(history.values(), history.rows(), strict=True):
        row |= {"flip_rate": state.flip_rate, "weight": group_weight(state, config.guard)}
        if state.id in gold:
            row |= {"gold": gold[state.id], "correct": same(state.label, gold[state.id])}
        rows.append(row)
    print_rows(rows, states_table)


def _open_for_reading(given: ReadingInputs) -> tuple[Session, Path | None]:
    """A session for `eval` and `sample`, and the run's checkpoint, whose sigma is set and nothing else is loaded."""
    if given.run is None:
        return open_session(given.config, given.problems, adapter=False), None
    flag = f"--run {given.run}"
    folder, run_dir = checkpoint.find(given.run)
    identity = _identity(run_dir, flag)
    session = open_session(given.config, given.problems, adapter=True)
    _check_model(session, identity, flag)
    checkpoint.load_scale(folder, session.policy)
    return session, folder


def _identity(run: RunDirectory, flag: str) -> dict[str, str]:
    """Fingerprints of the model and the problems of a run."""
    if not run.identity.is_file():
        raise UsageError(f"{flag}: not a run directory (no {run.identity.name} in it)")
    try:
        identity: dict[str, str] = json.loads(run.identity.read_text())
    except ValueError as error:
        raise UsageError(f"{flag}: {run.identity.name} in it has been changed ({error})") from error
    return identity


def _check_model(session: Session, identity: Mapping[str, str], flag: str) -> None:
    if session.policy.fingerprint != identity["model"]:
        raise UsageError(
            f"{flag}: model {session.config.model!r} is not the one of the run (other weights, or another dtype)"
        )


def _warn_of_size(session: Session, display: Display) -> None:
    count = len(session.problems.problems)
    if count > LARGE_SET:
        display.notice(
            f"{count} problems: label-free training was found safe up to about {LARGE_SET} (arXiv 2603.08660); "
            "beyond, check with ttrl-pop eval --compare that answers did not collapse"
        )


def _calibrate(session: Session, run_dir: RunDirectory, display: Display) -> None:
    if session.policy.population.needs_calibration:
        display.notice("finding sigma on the given problems …")
        calibration = calibrate(session)
        _announce(calibration, display)
        if calibration is not None:
            record = {"sigma": calibration.sigma, "kl": calibration.kl, "flips": calibration.flips}
            checkpoint.write_atomic(run_dir.path / "calibration.json", (json.dumps(record) + "\n").encode())


def _announce(calibration: Calibration | None, display: Display) -> None:
    if calibration is not None:
        display.notice(
            f"sigma = {calibration.sigma:.4g} (KL {calibration.kl:.3f} nats per token, "
            f"{calibration.flips:.1%} of likeliest tokens changed)"
        )


def _train(prepared: PreparedRun, progress: Progress, display: Display) -> tuple[StepReport | None, StepReport | None]:
    """Run the loop; returns the first and the last report of the whole run."""
    session = prepared.session
    answers, same = session.answers, session.grader.same
    per_step = min(session.config.problems_per_step, len(session.problems.problems))
    first = last = None
    if prepared.run.metrics.exists():
        for row in checkpoint.read_lines(prepared.run.metrics):
            last = from_metrics_row(row)
            first = first or last
            display.step(last)
    if progress.step < session.config.steps:
        display.phase(f"step {progress.step + 1}: sampling", per_step)
    voted = 0
    with closing(train(session, prepared.run, progress)) as events:
        for event in events:
            interrupts.check()
            if isinstance(event, StepReport):
                first, last, voted = first or event, event, 0
                display.step(event)
                if event.step < session.config.steps:
                    display.phase(f"step {event.step + 1}: sampling", per_step)
            else:
                display.tally(event, label_correct(event, answers, same))
                voted += 1
                if voted == per_step:
                    display.phase(f"step {progress.step + 1}: learning", 0)
    return first, last


def _survey(session: Session, display: Display, text: str) -> Iterator[dict[str, Any]]:
    answers, same = session.answers, session.grader.same
    display.phase(text, len(session.problems.problems))
    for tally in survey(session):
        interrupts.check()
        display.tally(tally, label_correct(tally, answers, same))
        yield {**answer_row(tally, answers, same), **_accuracy(session, tally)}


def _accuracy(session: Session, tally: Tally) -> dict[str, float]:
    gold = session.answers.get(tally.group.problem.id)
    if gold is None:
        return {}
    right = sum(session.grader.same(answer, gold) for answer in tally.answers_G)
    return {"accuracy": right / len(tally.answers_G)}


def _measure(session: Session, display: Display, name: str, noise: bool) -> Measures:
    if session.policy.population.needs_calibration:
        _announce(calibrate(session), display)
    display.phase(f"{name}: sampling", len(session.problems.problems))
    tallies = []
    for tally in survey(session, noise):
        interrupts.check()
        display.tally(tally, label_correct(tally, session.answers, session.grader.same))
        tallies.append(tally)
    return summarise(session, tallies)


def _measures_row(name: str, step: int, session: Session, measures: Measures, noise: bool) -> dict[str, Any]:
    config = session.config
    return {
        "system": name,
        "model": config.model,
        "step": step,
        "population": config.population.name if noise else "none",
        "problems": len(session.problems.problems),
        "rollouts": config.group_size,
        **measures.values,
        "intervals": {key: list(pair) for key, pair in measures.intervals.items() if pair is not None},
    }


def _difference_row(session: Session, base: Measures, trained: Measures) -> dict[str, Any]:
    """Run minus base, paired over problems, with 95 % intervals."""
    values: dict[str, float | None] = {}
    intervals: dict[str, list[float]] = {}
    ids = list(base.per_problem)
    for key in base.values:
        before, after = ({i: m.per_problem[i].get(key) for i in ids} for m in (base, trained))
        difference = bootstrap_difference(before, after, session.config.seed)
        values[key] = None if difference is None else difference[0]
        if difference is not None:
            intervals[key] = [difference[1], difference[2]]
    row: dict[str, Any] = {"system": "run - base", **values, "intervals": intervals}
    if session.answers:
        row["labels"] = outcome_table(_right(base), _right(trained))
    return row


def _right(measures: Measures) -> dict[str, bool]:
    """Whether the label is right, for each problem with a gold answer."""
    figures = {problem: row["label_accuracy"] for problem, row in measures.per_problem.items()}
    return {problem: bool(figure) for problem, figure in figures.items() if figure is not None}


def _print_summary(prepared: PreparedRun, first: StepReport | None, last: StepReport | None) -> None:
    """Before and after, and where everything is, on stderr."""
    run_dir = prepared.run
    console = console_on(sys.stderr)
    outcomes: dict[str, int] = {}
    if run_dir.baseline.exists() and run_dir.answers.exists():
        before, after = (list(checkpoint.read_lines(p)) for p in (run_dir.baseline, run_dir.answers))
        keys = {"agreement": "agreement", "accuracy": "rollout accuracy", "correct": "majority accuracy"}
        rows = [(name, _mean(before, key), _mean(after, key)) for key, name in keys.items()]
        title = f"all {len(after)} problems, {prepared.session.config.group_size} rollouts each"
        heads = "before", "after"
        outcomes = outcome_table(
            *({row["id"]: row["correct"] for row in part if "correct" in row} for part in (before, after))
        )
    elif first is not None and last is not None:
        keys = {
            "vote/agreement": "agreement",
            "rollout/accuracy": "rollout accuracy",
            "vote/label_accuracy": "majority accuracy",
        }
        rows = [(name, first.metrics[key], last.metrics[key]) for key, name in keys.items()]
        title, heads = "problems of the step", (f"step {first.step}", f"step {last.step}")
    else:
        return
    known = [row for row in rows if row[1:] != (None, None)]
    console.print(summary_table(title, known, *heads))
    if any(outcomes.values()):
        console.print(outcomes_line(outcomes))
    saved = checkpoint.latest(run_dir)
    paths = [run_dir.metrics, run_dir.answers, run_dir.checkpoint(saved) / "adapter" if saved else None]
    for path in paths:
        if path is not None and path.exists():
            console.print(Text(safe(str(path), LONGEST_PATH)), soft_wrap=True)


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [float(row[key]) for row in rows if row.get(key) is not None]
    return sum(values) / len(values) if values else None


def _create(given: RunInputs, files: Mapping[str, str]) -> RunDirectory:
    """Make the run directory and write `files` into it, the last of which makes it one.

    Raises:
        UsageError: it cannot be made, or another process was faster.
    """
    path = given.out
    try:
        if path is None:
            path = next(free for free in _names(given.source) if _made(free))
        else:
            path.mkdir(parents=True, exist_ok=True)
        run = RunDirectory(path)
        with run.lock():
            if run.config.exists():
                raise UsageError(f"--out {path}: another process has begun a run in it; pass another --out")
            try:
                for name, content in files.items():
                    if content:
                        checkpoint.write_atomic(path / name, content.encode())
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                raise
    except OSError as error:
        raise UsageError(f"run directory {path or 'runs'} cannot be made ({error.strerror}); pass --out") from error
    return run


def _names(source: str) -> Iterator[Path]:
    """runs/NAME-1, runs/NAME-2, …"""
    stem = "stdin" if source == "-" else Path(source.removeprefix("hf:")).stem
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:100].strip("-.") or "run"
    return (Path("runs") / f"{name}-{n}" for n in count(1))


def _made(path: Path) -> bool:
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    return True
