"""What each command does once its arguments are parsed: prepare, iterate, show, write."""

import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from ttrl_pop import checkpoint
from ttrl_pop.calibrate import Calibration, calibrate
from ttrl_pop.checkpoint import RunDirectory
from ttrl_pop.config import Config, ProblemsConfig, dump_config, load_config, parse_assignment
from ttrl_pop.display import Display, answers_table, console_on, measures_table, open_display, safe, summary_table
from ttrl_pop.errors import UsageError
from ttrl_pop.evaluate import summarise, survey
from ttrl_pop.measures import Measures, bootstrap_difference, outcome_table
from ttrl_pop.problems import ProblemSet, read_problems, write_problems
from ttrl_pop.report import answer_row, label_correct, rollout_rows
from ttrl_pop.session import Session, check_trainable, open_session
from ttrl_pop.train import Progress, resume, train
from ttrl_pop.types import StepReport, Tally

Overrides = Mapping[str, Any]


LARGE_SET = 128
"""Problems beyond which label-free training was found to collapse (arXiv 2603.08660)."""
LONGEST_PATH = 4096
"""Characters of a path that are printed."""


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A run that has been checked and whose directory exists."""

    session: Session
    run: RunDirectory
    resumed: bool
    extended: bool = False
    """The number of steps differs from the one that the run directory says."""


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
    _check_free(out)
    problems = read_problems(source, config.problems, gold)
    if config.vote.reward == "gold":
        _check_all_gold(problems)
    session = open_session(config, problems, adapter=True)
    identity = {"model": session.policy.fingerprint, "problems": problems.fingerprint}
    files = {
        "config.toml": dump_config(config),
        "problems.jsonl": "".join(f"{line}\n" for line in write_problems(problems.problems)),
        "gold.jsonl": "".join(json.dumps({"id": i, "answer": a}) + "\n" for i, a in problems.answers.items()),
        "identity.json": json.dumps(identity, indent=1) + "\n",
    }
    return PreparedRun(session, _create(out, source, files), resumed=False)


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
    config = _config(run.config, overrides, settings)
    before, after = _flat(saved.model_dump()), _flat(config.model_dump())
    for key, value in after.items():
        if value != before[key] and key != "steps" and not key.startswith("problems."):
            raise UsageError(f"--resume {path}: {key} was {before[key]!r}, cannot become {value!r}; start a new run")
    done = checkpoint.latest(run) or 0
    if config.steps < done:
        raise UsageError(f"--resume {path}: the run has done {done} steps; --steps cannot go back to {config.steps}")
    _check_writable(path, f"--resume {path}")
    # Before the model is loaded; the lock that counts is the one that `run` holds.
    with run.lock():
        pass
    if source is not None and read_problems(source, config.problems).fingerprint != identity["problems"]:
        raise UsageError(f"--resume {path}: {source} holds other problems than the run; leave PROBLEMS out")
    stored = read_problems(str(run.problems), ProblemsConfig(), str(run.gold) if run.gold.is_file() else None)
    if stored.fingerprint != identity["problems"]:
        raise UsageError(f"--resume {path}: {run.problems.name} in it has been changed; start a new run")
    # The flags for reading were for PROBLEMS of this command, not for the run.
    config = saved.model_copy(update={"steps": config.steps})
    session = open_session(config, stored, adapter=True)
    _check_model(session, identity, f"--resume {path}")
    return PreparedRun(session, run, resumed=True, extended=config.steps != saved.steps)


def run(prepared: PreparedRun, quiet: bool) -> None:
    """Train, answer, summarise.

    Raises:
        UsageError: another process works in the run directory.
    """
    session, run_dir = prepared.session, prepared.run
    config = session.config
    with run_dir.lock(), open_display(quiet, sys.stderr) as display:
        if prepared.extended:
            # In this order: answers of fewer steps must not outlive a kill in between.
            run_dir.answers.unlink(missing_ok=True)
            checkpoint.write_atomic(run_dir.config, dump_config(config).encode())
        progress = resume(run_dir, session) if prepared.resumed else Progress()
        display.begin(run_dir.path.name, config.steps, progress.step)
        _warn_of_size(session, display)
        try:
            _calibrate(session, run_dir, display)
            if config.baseline and not progress.step and not run_dir.baseline.exists():
                rows = list(_survey(session, display, "before training: answering"))
                checkpoint.write_lines(run_dir.baseline, rows)
            first, last = _train(prepared, progress, display)
            if config.answers and not run_dir.answers.exists():
                rows = list(_survey(session, display, "after training: answering"))
                checkpoint.write_lines(run_dir.answers, rows)
        except KeyboardInterrupt:
            hint = f"ttrl-pop run --resume {shlex.quote(str(run_dir.path))}"
            display.notice(f"stopped after step {progress.step}; go on with: {hint}")
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
    """Measure base model, run, or both, and print one row for each and one for the difference.

    Raises:
        UsageError: whatever is wrong with the arguments, the problems or the run.
    """
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
            rows.append(_measures_row("base", 0, session, measured["base"], noise))
        if folder is not None:
            checkpoint.load_policy(folder, session.policy)
            measured["run"] = _measure(session, display, "run", noise)
            step = checkpoint.load_state(folder)["step"]
            rows.append(_measures_row("run", step, session, measured["run"], noise))
    if compare:
        rows.append(_difference_row(session, measured["base"], measured["run"]))
    _print_rows(rows, measures_table)


def sample(
    source: str,
    run_path: Path | None,
    config_file: Path | None,
    overrides: Overrides,
    settings: Sequence[str],
    quiet: bool,
) -> None:
    """Print rollouts, a problem's as soon as the last of them and those of the problems before it are written.

    Raises:
        UsageError: whatever is wrong with the arguments, the problems or the run.
    """
    session, folder, noise = _open_for_reading(source, None, run_path, config_file, overrides, settings)
    if folder is not None:
        checkpoint.load_policy(folder, session.policy)
    # On a terminal the rows themselves show how far it is; a live view would be drawn among them.
    with open_display(quiet or sys.stdout.isatty(), sys.stderr) as display:
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
    # Nothing learns here, so a run that was rewarded by gold answers can be measured where there are none.
    overrides = {**overrides, "vote.reward": "majority"}
    if run_path is None:
        config = _config(config_file, overrides, settings)
        return open_session(config, read_problems(source, config.problems, gold), adapter=False), None, True
    if config_file is not None:
        raise UsageError("--run takes its configuration from the run directory; use --set for single values")
    folder, run_dir = checkpoint.find(run_path)
    identity = _identity(run_dir, f"--run {run_path}")
    saved = load_config(run_dir.config, {})
    config = _config(run_dir.config, overrides, settings)
    noise = config.population.name != "none" or saved.population.name == "none"
    if not noise:
        # A trained adapter without noise is the mean mind; it needs the population's mu.
        population = config.population.model_copy(update={"name": saved.population.name})
        config = config.model_copy(update={"population": population})
    before, after = _flat(saved.model_dump()), _flat(config.model_dump())
    for key, value in after.items():
        if value != before[key] and key.startswith(("population.name", "population.options", "learn.lora.")):
            raise UsageError(f"--run {run_path}: {key} was {before[key]!r} in training, cannot become {value!r}")
    session = open_session(config, read_problems(source, config.problems, gold), adapter=True)
    _check_model(session, identity, f"--run {run_path}")
    checkpoint.load_scale(folder, session.policy)
    return session, folder, noise


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


def _check_all_gold(problems: ProblemSet) -> None:
    missing = [problem.id for problem in problems.problems if problems.answers.get(problem.id) is None]
    if missing:
        raise UsageError(
            f"reward gold needs a gold answer for every problem; {len(missing)} of {len(problems.problems)} have none "
            f"(first: {missing[0]!r}). Pass --gold, or leave them out"
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
            last = StepReport(row.pop("step"), row)
            first = first or last
            display.step(last)
    display.phase(f"step {progress.step + 1}: sampling", per_step)
    with closing(train(session, prepared.run, progress)) as events:
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


def _print_rows(rows: list[dict[str, Any]], table: Callable[[Sequence[Mapping[str, Any]]], RenderableType]) -> None:
    """JSON lines, or a table where a person looks on."""
    if sys.stdout.isatty():
        console_on(sys.stdout).print(table(rows))
        return
    for row in rows:
        print(json.dumps(row))
    sys.stdout.flush()


def _print_summary(prepared: PreparedRun, first: StepReport | None, last: StepReport | None) -> None:
    """Before and after, and where everything is, on stderr."""
    run_dir = prepared.run
    console = console_on(sys.stderr)
    if run_dir.baseline.exists() and run_dir.answers.exists():
        before, after = (list(checkpoint.read_lines(p)) for p in (run_dir.baseline, run_dir.answers))
        keys = {"agreement": "agreement", "accuracy": "rollout accuracy", "correct": "majority accuracy"}
        rows = [(name, _mean(before, key), _mean(after, key)) for key, name in keys.items()]
        title = f"all {len(after)} problems, {prepared.session.config.group_size} rollouts each"
        heads = "before", "after"
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
    saved = checkpoint.latest(run_dir)
    paths = [run_dir.metrics, run_dir.answers, run_dir.checkpoint(saved) / "adapter" if saved else None]
    for path in paths:
        if path is not None and path.exists():
            console.print(Text(safe(str(path), LONGEST_PATH)), soft_wrap=True)


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [float(row[key]) for row in rows if row.get(key) is not None]
    return sum(values) / len(values) if values else None


def _create(out: Path | None, source: str, files: Mapping[str, str]) -> RunDirectory:
    """Make the run directory and write `files` into it, the last of which makes it one.

    Raises:
        UsageError: it cannot be made, or another process was faster.
    """
    path = out
    try:
        if path is None:
            path = next(free for free in _names(source) if _made(free))
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


def _check_free(out: Path | None) -> None:
    if out is None:
        _check_writable(Path("runs"), "run directory runs")
        return
    flag = f"--out {out}"
    _check_writable(out, flag)
    if out.is_dir() and any(out.iterdir()):
        resumable = f"--resume {out} or " if RunDirectory(out).identity.exists() else ""
        raise UsageError(f"{flag}: exists and is not empty; pass {resumable}another --out")


def _check_writable(path: Path, flag: str) -> None:
    """Try it: permission bits say nothing of read-only mounts, of /proc, or of what root may do."""
    try:
        parent = next(p for p in (path.absolute(), *path.absolute().parents) if os.path.lexists(p))
        if not parent.is_dir():
            raise UsageError(f"{flag}: {parent} is not a directory")
        os.rmdir(tempfile.mkdtemp(prefix=".ttrl-pop-", dir=parent))
    except OSError as error:
        raise UsageError(f"{flag}: cannot be written to ({error.strerror}); name another directory") from error


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and key != "options":
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
