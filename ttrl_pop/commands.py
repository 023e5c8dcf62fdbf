"""What each command does once its arguments are parsed: prepare, iterate, show, write."""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console

from ttrl_pop import checkpoint
from ttrl_pop.calibrate import Calibration, calibrate
from ttrl_pop.checkpoint import RunDirectory
from ttrl_pop.config import Config, dump_config, load_config, parse_assignment
from ttrl_pop.display import Display, answers_table, open_display, summary_table
from ttrl_pop.errors import UsageError
from ttrl_pop.evaluate import summarise, survey
from ttrl_pop.measures import Measures, bootstrap_difference, outcome_table
from ttrl_pop.problems import read_problems, write_problems
from ttrl_pop.report import answer_row, label_correct, rollout_rows
from ttrl_pop.session import Session, check_trainable, open_session
from ttrl_pop.train import Progress, resume, train
from ttrl_pop.types import StepReport, Tally

Overrides = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A run that has been checked and whose directory exists."""

    session: Session
    run: RunDirectory
    progress: Progress
    resumed: bool


def prepare_run(
    source: str | None,
    gold: str | None,
    out: Path | None,
    config_file: Path | None,
    overrides: Overrides,
    settings: Sequence[str],
) -> PreparedRun:
    """Check everything that can be wrong, then create the run directory.

    Raises:
        UsageError: nothing has been written.
    """
    if source is None:
        raise UsageError("run needs PROBLEMS: a file, - for standard input, or hf:NAME (or --resume RUN)")
    config = _config(config_file, overrides, settings)
    check_trainable(config)
    problems = read_problems(source, config.problems, gold)
    run = RunDirectory(out if out is not None else _free_name(source))
    _check_writable(run.path)
    session = open_session(config, problems, adapter=True)
    run.path.mkdir(parents=True, exist_ok=True)
    checkpoint.write_atomic(run.config, dump_config(config).encode())
    checkpoint.write_atomic(run.problems, "".join(f"{line}\n" for line in write_problems(problems.problems)).encode())
    if problems.answers:
        checkpoint.write_lines(run.gold, ({"id": i, "answer": a} for i, a in problems.answers.items()))
    identity = {"model": session.policy.fingerprint, "problems": problems.fingerprint}
    checkpoint.write_atomic(run.identity, (json.dumps(identity, indent=1) + "\n").encode())
    return PreparedRun(session, run, Progress(), resumed=False)


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
        UsageError: it is no run directory, or anything but the number of steps has changed.
    """
    run = RunDirectory(path)
    if not run.identity.is_file():
        raise UsageError(f"--resume {path}: not a run directory (no {run.identity.name} in it)")
    if config_file is not None:
        raise UsageError("--resume takes its configuration from the run directory; leave --config out")
    saved = load_config(run.config, {})
    config = _config(run.config, overrides, settings)
    for key, value in _flat(config.model_dump()).items():
        before = _flat(saved.model_dump())[key]
        if value != before and key != "steps" and not key.startswith("problems."):
            raise UsageError(f"--resume {path}: {key} was {before!r}, cannot become {value!r}; start a new run")
    identity = json.loads(run.identity.read_text())
    if source is not None:
        given = read_problems(source, config.problems, gold)
        if given.fingerprint != identity["problems"]:
            raise UsageError(f"--resume {path}: {source} holds other problems than the run; leave PROBLEMS out")
    kept = str(run.gold) if run.gold.is_file() else None
    stored = read_problems(str(run.problems), type(config.problems)(), gold or kept)
    if stored.fingerprint != identity["problems"]:
        raise UsageError(f"--resume {path}: {run.problems.name} in it has been changed; start a new run")
    session = open_session(config, stored, adapter=True)
    if session.policy.fingerprint != identity["model"]:
        raise UsageError(f"--resume {path}: model {config.model!r} is not the one of the run (its weights differ)")
    if config.steps != saved.steps:
        checkpoint.write_atomic(run.config, dump_config(config).encode())
        run.answers.unlink(missing_ok=True)
    return PreparedRun(session, run, resume(run, session), resumed=True)


def run(prepared: PreparedRun, quiet: bool) -> None:
    """Train, answer, summarise."""
    session, run_dir, progress = prepared.session, prepared.run, prepared.progress
    config = session.config
    with run_dir.lock(), open_display(quiet, sys.stderr) as display:
        display.begin(run_dir.path.name, config.steps, progress.step)
        try:
            _calibrate(session, run_dir, display)
            if config.baseline and not run_dir.baseline.exists():
                rows = list(_survey(session, display, "before training: answering"))
                checkpoint.write_lines(run_dir.baseline, rows)
            first, last = _train(prepared, display)
            if config.answers and not run_dir.answers.exists():
                rows = list(_survey(session, display, "after training: answering"))
                checkpoint.write_lines(run_dir.answers, rows)
        except KeyboardInterrupt:
            display.notice(f"stopped after step {progress.step}; go on with: ttrl-pop run --resume {run_dir.path}")
            raise
    if config.answers:
        _print_rows(list(checkpoint.read_lines(run_dir.answers)), answers_table)
    if not quiet:
        _print_summary(prepared, first, last)


def evaluate(
    source: str,
    gold: str | None,
    run_path: Path | None,
    compare: bool,
    config_file: Path | None,
    overrides: Overrides,
    settings: Sequence[str],
    quiet: bool,
) -> None:
    """Measure base model, run, or both, and print one row for each and one for the difference."""
    if compare and run_path is None:
        raise UsageError("--compare puts a run beside the base model; pass --run RUN")
    session, folder, noise = _open_for_reading(source, gold, run_path, config_file, overrides, settings)
    rows: list[dict[str, Any]] = []
    measured: dict[str, Measures] = {}
    with open_display(quiet, sys.stderr) as display:
        display.begin("eval", 0, 0)
        if folder is None or compare:
            with session.policy.as_base():
                measured["base"] = _measure(session, display, "base", noise)
        if folder is not None:
            checkpoint.load_policy(folder, session.policy)
            measured["run"] = _measure(session, display, "run", noise)
    for name, measures in measured.items():
        rows.append(_measures_row(name, session, measures, noise))
    if compare:
        rows.append(_difference_row(session, measured["base"], measured["run"]))
    _print_rows(rows, _measures_table)


def sample(
    source: str,
    run_path: Path | None,
    config_file: Path | None,
    overrides: Overrides,
    settings: Sequence[str],
    quiet: bool,
) -> None:
    """Print rollouts as they are written."""
    session, folder, noise = _open_for_reading(source, None, run_path, config_file, overrides, settings)
    if folder is not None:
        checkpoint.load_policy(folder, session.policy)
    with open_display(quiet, sys.stderr) as display:
        display.begin("sample", 0, 0)
        if session.policy.population.needs_calibration:
            _announce(calibrate(session), display)
        display.phase("sampling", len(session.problems.problems))
        for tally in survey(session, noise):
            display.tally(tally, None)
            for row in rollout_rows(tally):
                del row["reward"]
                print(json.dumps(row))
            sys.stdout.flush()


def _config(config_file: Path | None, overrides: Overrides, settings: Sequence[str]) -> Config:
    return load_config(config_file, {**overrides, **dict(parse_assignment(text) for text in settings)})


def _open_for_reading(
    source: str,
    gold: str | None,
    run_path: Path | None,
    config_file: Path | None,
    overrides: Overrides,
    settings: Sequence[str],
) -> tuple[Session, Path | None, bool]:
    """A session for `eval` and `sample`; the run's checkpoint, whose sigma is already set; whether minds have noise."""
    if run_path is None:
        config = _config(config_file, overrides, settings)
        return open_session(config, read_problems(source, config.problems, gold), adapter=False), None, True
    folder, run_dir = checkpoint.find(run_path)
    if config_file is not None:
        raise UsageError("--run takes its configuration from the run directory; use --set for single values")
    # A trained adapter without noise is the mean mind; it needs the population's mu.
    noise = overrides.get("population.name") != "none"
    kept = {key: value for key, value in overrides.items() if noise or key != "population.name"}
    base = load_config(run_dir.config, {})
    # How the run read its own file says nothing about this one, but that a user set it before.
    config = _config(run_dir.config, {"problems": base.problems.model_dump(), **kept}, settings)
    session = open_session(config, read_problems(source, config.problems, gold), adapter=True)
    identity = json.loads(run_dir.identity.read_text())
    if session.policy.fingerprint != identity["model"]:
        raise UsageError(f"--run {run_path}: model {config.model!r} is not the one that the run trained")
    checkpoint.load_scale(folder, session.policy)
    return session, folder, noise


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


def _train(prepared: PreparedRun, display: Display) -> tuple[StepReport | None, StepReport | None]:
    """Run the loop; returns the first and the last report of the whole run."""
    session = prepared.session
    answers, same = session.answers, session.grader.same
    per_step = min(session.config.problems_per_step, len(session.problems.problems))
    reports = [
        StepReport(row.pop("step"), row)
        for row in (checkpoint.read_lines(prepared.run.metrics) if prepared.run.metrics.exists() else ())
    ]
    first, last = (reports[0], reports[-1]) if reports else (None, None)
    for report in reports[-60:]:
        display.step(report)
    display.phase(f"step {prepared.progress.step + 1}: sampling", per_step)
    with closing(train(session, prepared.run, prepared.progress)) as events:
        for event in events:
            if isinstance(event, StepReport):
                first, last = first or event, event
                display.step(event)
                if event.step < session.config.steps:
                    display.phase(f"step {event.step + 1}: sampling", per_step)
            else:
                display.tally(event, label_correct(event, answers, same))
    return first, last


def _survey(session: Session, display: Display, text: str) -> Iterator[dict[str, Any]]:
    answers, same = session.answers, session.grader.same
    display.phase(text, len(session.problems.problems))
    for tally in survey(session):
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
        display.tally(tally, label_correct(tally, session.answers, session.grader.same))
        tallies.append(tally)
    return summarise(session, tallies)


def _measures_row(name: str, session: Session, measures: Measures, noise: bool) -> dict[str, Any]:
    config = session.config
    return {
        "system": name,
        "model": config.model,
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
        right = [
            {
                i: bool(m.per_problem[i]["label_accuracy"])
                for i in ids
                if m.per_problem[i].get("label_accuracy") is not None
            }
            for m in (base, trained)
        ]
        row["labels"] = outcome_table(right[0], right[1])
    return row


def _print_rows(rows: list[dict[str, Any]], table: Any) -> None:
    """JSON lines, or a table where a person looks on."""
    if sys.stdout.isatty():
        Console().print(table(rows))
        return
    for row in rows:
        print(json.dumps(row))
    sys.stdout.flush()


def _measures_table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("measure")
    for row in rows:
        table.add_column(row["system"], justify="right")
    keys = [k for k, v in rows[0].items() if isinstance(v, float)]
    for key in keys:
        cells = []
        for row in rows:
            low_high = row["intervals"].get(key)
            value = row.get(key)
            cell = "" if value is None else f"{value:.3f}"
            cells.append(f"{cell} [{low_high[0]:.3f}, {low_high[1]:.3f}]" if low_high else cell)
        table.add_row(key, *cells)
    return table


def _print_summary(prepared: PreparedRun, first: StepReport | None, last: StepReport | None) -> None:
    run_dir = prepared.run
    console = Console(stderr=True)
    if run_dir.baseline.exists() and run_dir.answers.exists():
        before, after = (list(checkpoint.read_lines(p)) for p in (run_dir.baseline, run_dir.answers))
        rows = [
            ("agreement", _mean(before, "agreement"), _mean(after, "agreement")),
            ("rollout accuracy", _mean(before, "accuracy"), _mean(after, "accuracy")),
            ("majority accuracy", _mean(before, "correct"), _mean(after, "correct")),
        ]
        title = f"all {len(after)} problems, {prepared.session.config.group_size} rollouts each"
        console.print(summary_table(title, rows, "before", "after"))
    elif first is not None and last is not None:
        names = {
            "vote/agreement": "agreement",
            "rollout/accuracy": "rollout accuracy",
            "vote/label_accuracy": "majority accuracy",
        }
        rows = [(name, first.metrics[key], last.metrics[key]) for key, name in names.items()]
        console.print(summary_table("problems of the step", rows, f"step {first.step}", f"step {last.step}"))
    saved = checkpoint.latest(run_dir)
    paths = [run_dir.metrics, run_dir.answers, run_dir.checkpoint(saved) / "adapter" if saved else None]
    for path in paths:
        if path is not None and path.exists():
            console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [float(row[key]) for row in rows if row.get(key) is not None]
    return sum(values) / len(values) if values else None


def _free_name(source: str) -> Path:
    """runs/NAME-NUMBER, the first number that is free."""
    stem = "stdin" if source == "-" else Path(source.removeprefix("hf:")).stem
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "run"
    return next(path for n in count(1) if not (path := Path("runs") / f"{name}-{n}").exists())


def _check_writable(path: Path) -> None:
    if path.exists():
        if not path.is_dir():
            raise UsageError(f"--out {path}: exists and is not a directory")
        if any(path.iterdir()):
            raise UsageError(f"--out {path}: exists and is not empty; pass --resume {path} or another --out")
    parent = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"--out {path}: {parent} is not a directory that can be written to")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and key != "options":
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
