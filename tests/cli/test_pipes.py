"""Commands as processes: pipes and their readers, signals, full disks, terminals, memory and time."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli.commands import ended, final, on_terminal, rows_of, write_lines
from fakes import ROOT, save_tiny
from typer.testing import Result

from ttrl_pop.store import checkpoint
from ttrl_pop.store.directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("elsewhere")]


@pytest.mark.parametrize("command", ["run", "sample", "eval"])
@pytest.mark.parametrize("lines", [0, 1])
def test_a_reader_that_leaves_ends_it_quietly(
    place: Path, tmp_path: Path, start: Callable[..., Any], command: str, lines: int
) -> None:
    pipe, errors = tmp_path / "pipe", tmp_path / "errors"
    os.mkfifo(pipe)
    process = start(command, place / "p.jsonl", "--config", place / "c.toml", stdout=pipe, stderr=errors)
    with pipe.open() as reader:
        for _ in range(lines):
            json.loads(reader.readline())
    assert ended(process) == 0
    assert "Traceback" not in errors.read_text()
    assert "Broken" not in errors.read_text()


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"]], ids=" ".join)
def test_a_reader_of_the_help_may_leave(tmp_path: Path, start: Callable[..., Any], words: list[str]) -> None:
    pipe, errors = tmp_path / "pipe", tmp_path / "errors"
    os.mkfifo(pipe)
    process = start(*words, stdout=pipe, stderr=errors)
    pipe.open().close()
    assert (ended(process), errors.read_text()) == (0, "")


def test_a_broken_pipe_of_an_engine_is_an_error(place: Path, tmp_path: Path, start: Callable[..., Any]) -> None:
    arguments = ("sample", place / "p.jsonl", "--config", place / "c.toml", "--backend", "cli.commands:Broken")
    process = start(*arguments, stdout=tmp_path / "out", stderr=tmp_path / "errors")
    assert ended(process) == 1
    assert "in rollouts\n" in (tmp_path / "errors").read_text(), "the place where it broke"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_rows_that_find_no_room_are_one_line(place: Path, tmp_path: Path, start: Callable[..., Any]) -> None:
    arguments = ("sample", place / "p.jsonl", "--config", place / "c.toml", "--quiet")
    process = start(*arguments, stdout="/dev/full", stderr=tmp_path / "errors")
    assert ended(process) == 1
    message = "ttrl-pop: standard output cannot be written to (No space left on device); send it elsewhere\n"
    assert (tmp_path / "errors").read_text() == message


def test_a_reader_of_stderr_that_leaves_changes_nothing(
    place: Path, trained: tuple[Path, Result], tmp_path: Path, start: Callable[..., Any]
) -> None:
    pipe, out = tmp_path / "pipe", tmp_path / "run"
    os.mkfifo(pipe)
    arguments = ("--config", place / "c.toml", "--out", out, "--gold", place / "gold.jsonl", "--set", "baseline=true")
    process = start("run", place / "p.jsonl", *arguments, stdout=tmp_path / "answers", stderr=pipe)
    pipe.open().close()
    assert ended(process) == 0
    assert (tmp_path / "answers").read_text() == trained[1].stdout


@pytest.mark.parametrize(("number", "quiet"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_an_interrupted_run_saves_says_how_to_go_on_and_ends_the_same(
    place: Path, long_run: Path, tmp_path: Path, start: Callable[..., Any], number: signal.Signals, quiet: bool
) -> None:
    out, errors = tmp_path / "a run", tmp_path / "errors"
    arguments = ("--config", place / "c.toml", "--steps", 40, "--out", out, *(["--quiet"] if quiet else []))
    # Saving at the end of every step must not be what keeps the work.
    arguments += ("--set", "checkpoint.every=1000")
    process = start("run", place / "p.jsonl", *arguments, stdout=tmp_path / "answers", stderr=errors)
    metrics = RunDirectory(out).metrics
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 3):
        time.sleep(0.01)
    # The newest row may not have reached the disk: its step is then cut short.
    os.kill(process.pid, number)
    assert ended(process) == 130, errors.read_text()
    saved = checkpoint.latest(RunDirectory(out))
    assert saved is not None
    assert 2 <= saved < 40
    assert (tmp_path / "answers").read_text() == ""
    said = errors.read_text().splitlines()
    if quiet:
        assert said == []
    else:
        assert (
            said[-1] == f"stopped; saved up to step {saved}; go on with: ttrl-pop run --resume {shlex.quote(str(out))}"
        )
    assert ended(start("run", "--resume", out, stdout=tmp_path / "resumed")) == 0
    assert final(out) == final(long_run)
    assert (tmp_path / "resumed").read_bytes() == (long_run / "answers.jsonl").read_bytes()


@pytest.mark.parametrize("full", ["in a checkpoint", "in the metrics"])
def test_a_full_disk_says_what_is_saved_and_how_to_go_on(
    place: Path, long_run: Path, tmp_path: Path, start: Callable[..., Any], full: str
) -> None:
    run_dir, errors = RunDirectory(tmp_path / "a run"), tmp_path / "errors"
    checkpointed = max(file.stat().st_size for file in RunDirectory(long_run).checkpoint(40).rglob("*.safetensors"))
    recorded = RunDirectory(long_run).metrics.stat().st_size
    assert checkpointed < 0.9 * recorded
    largest = checkpointed // 2 if full == "in a checkpoint" else int(0.9 * recorded)
    arguments = ("--config", place / "c.toml", "--steps", 40, "--out", run_dir.path, "--quiet")
    process = start("run", place / "p.jsonl", *arguments, stdout=tmp_path / "answers", stderr=errors, largest=largest)
    assert ended(process) == 1
    saved = checkpoint.latest(run_dir) or 0
    assert saved == 0 if full == "in a checkpoint" else 20 < saved < 40
    hint = f"ttrl-pop run --resume {shlex.quote(str(run_dir.path))}"
    told = (
        f"ttrl-pop: {run_dir.path}: cannot be written to (File too large); saved up to step {saved}; go on with: {hint}"
    )
    assert errors.read_text() == f"{told}\n"
    assert (tmp_path / "answers").read_text() == ""
    assert ended(start("run", "--resume", run_dir.path, stdout=os.devnull)) == 0
    assert final(run_dir.path) == final(long_run)


def test_a_terminal_gets_a_table_and_hostile_text_cannot_act(
    place: Path, tmp_path: Path, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": "\x1b[31m[red]id", "prompt": "Q"}))
    (tmp_path / "extractor.py").write_text(
        "def hostile(text, finish_reason):\n    return '\\x1b[2J\\x1b]0;owned\\x07[bold]seven[/bold]'\n"
    )
    more = ("--steps", 1, "--out", tmp_path / "run", "--set", "vote.extract=extractor:hostile")
    monkeypatch.syspath_prepend(tmp_path)
    code, shown = on_terminal(start, "run", tmp_path / "p.jsonl", "--config", place / "c.toml", *more)
    assert code == 0
    assert "agreement" in shown
    assert "␛[31m[red]id" in shown
    assert "␛[2J␛]0;owned␇[bold]seven" in shown
    assert "\x1b[2J" not in shown
    assert "\x1b]0;" not in shown
    assert "\x07" not in shown
    assert not any(line.startswith("{") for line in shown.splitlines())


def test_eval_shows_a_table_and_sample_its_rows_on_a_terminal(
    place: Path, trained: tuple[Path, Result], start: Callable[..., Any]
) -> None:
    arguments = ("--gold", place / "gold.jsonl", "--run", trained[0], "--compare")
    code, shown = on_terminal(start, "eval", place / "p.jsonl", *arguments)
    plain = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", shown)
    assert code == 0
    assert re.search(r"base +run +run - base", plain)
    assert re.search(r"maj@3 +\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]", plain)
    assert re.search(r"labels: learned \d, kept \d, lost \d, never \d", plain)
    code, shown = on_terminal(start, "sample", place / "p.jsonl", "--config", place / "c.toml")
    assert code == 0
    rows = [line for line in shown.splitlines() if not line.startswith("warning: ")]
    assert len(rows_of("\n".join(rows))) == 18, "no live view among the rows"


def test_memory_does_not_grow_with_steps(place: Path, tmp_path: Path, start: Callable[..., Any]) -> None:
    process = start(
        *("run", place / "p.jsonl", "--config", place / "c.toml", "--out", tmp_path / "run", "--steps", 12),
        *("--backend", "cli.commands:Counted", "--set", "answers=false"),
        stdout=tmp_path / "out",
        stderr=tmp_path / "errors",
    )
    assert ended(process) == 0
    found = re.findall(r"^alive (\d+) (\d+)$", (tmp_path / "errors").read_text(), re.MULTILINE)
    rollouts, things = ([int(count) for count in column] for column in zip(*found, strict=True))
    assert len(found) == 12
    assert set(rollouts) == {12}, "the rollouts of one step"
    # The noise of three minds a step is kept, up to a limit.
    assert things[-1] - things[3] <= 8 * 3


def test_a_hundred_thousand_problems_start_at_once(place: Path, tmp_path: Path, start: Callable[..., Any]) -> None:
    model = save_tiny(tmp_path / "roomy")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    rows = [
        {"id": f"n{i}", "problem": f"What is {i} times {i + 1}?", "answer": str(i * (i + 1))} for i in range(100_000)
    ]
    process = start(
        *("run", write_lines(tmp_path / "many.jsonl", rows), "--config", place / "c.toml", "--model", model),
        *("--backend", "cli.commands:Timed", "--steps", 1, "--set", "answers=false", "--out", tmp_path / "run"),
        stdout=tmp_path / "out",
        stderr=tmp_path / "errors",
    )
    assert ended(process) == 0
    (seconds,) = re.findall(r"^cpu (.*)$", (tmp_path / "errors").read_text(), re.MULTILINE)
    # Generous: other things run beside the tests.
    assert float(seconds) < 10


def test_the_pipe_of_the_readme(place: Path, tmp_path: Path) -> None:
    """A real shell, a real process: nothing but JSON on stdout, nothing on stderr."""
    problems = ROOT / "examples" / "times-table.jsonl"
    reader = (
        "jq -r .id"
        if shutil.which("jq")
        else f"{sys.executable} -c 'import sys, json; [print(json.loads(x)[\"id\"]) for x in sys.stdin]'"
    )
    command = f"{sys.executable} -m ttrl_pop run - --config {place}/c.toml --steps 1 --quiet | {reader}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"head -4 {problems} | {command}"], capture_output=True, text=True
    )
    expected = [json.loads(line)["id"] for line in problems.read_text().splitlines()[:4]]
    assert (done.returncode, done.stderr, done.stdout.split()) == (0, "", expected)


@pytest.mark.parametrize("reader", ["head -1", "true"])
def test_a_shell_sees_no_trace_of_a_closed_pipe(place: Path, reader: str) -> None:
    command = f"{sys.executable} -m ttrl_pop sample {place}/p.jsonl --config {place}/c.toml --quiet | {reader}"
    done = subprocess.run(
        ["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0"
