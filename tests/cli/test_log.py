"""What a run keeps of what it told, and of where it ran: run.log and environment.json."""

import json
from pathlib import Path
from typing import Any

import pytest
from cli.commands import Refusing, rows_of, run, ttrl, write_lines
from fakes import PROBLEMS
from typer.testing import Result

from ttrl_pop.cli.run import LARGE_SET
from ttrl_pop.run import environment
from ttrl_pop.sample.hf.backend import HfBackend
from ttrl_pop.store import identity
from ttrl_pop.store.directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("elsewhere")]


def log_of(out: Path) -> list[tuple[str, str]]:
    return [(row["level"], row["text"]) for row in rows_of(RunDirectory(out).log.read_text())]


def test_every_notice_is_kept_also_where_it_is_not_shown(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("ttrl_pop.cli.run.LARGE_SET", 1)
    assert LARGE_SET > 1
    shown = run(place, tmp_path / "shown")
    for out, more in (("shown", ()), ("quiet", ("--quiet",))):
        if more:
            run(place, tmp_path / out, *more)
        levels = [level for level, _ in log_of(tmp_path / out)]
        assert (levels[0], levels[-1]) == ("info", "info")
    told = [text for level, text in log_of(tmp_path / "shown") if level in ("notice", "warning")]
    assert [text for text in told if "label-free" in text]
    assert all(text[:400] in shown.stderr for text in told)
    assert told == [text for level, text in log_of(tmp_path / "quiet") if level in ("notice", "warning")]


def test_what_was_told_before_there_was_a_directory_is_kept_too(place: Path, tmp_path: Path) -> None:
    rows = [{"id": p.id, "prompt": p.prompt, "solution": "worked out, without a box"} for p in PROBLEMS]
    write_lines(tmp_path / "p.jsonl", rows)
    said = ttrl("run", tmp_path / "p.jsonl", "--config", place / "c.toml", "--steps", 1, "--out", tmp_path / "r").stderr
    told = [text for level, text in log_of(tmp_path / "r") if level == "notice" and "p.jsonl" in text]
    assert told
    assert all(f"ttrl-pop: {text}" in said for text in told)


def test_a_log_goes_on_with_the_run(trained: tuple[Path, Result], copied: Path) -> None:
    before = RunDirectory(copied).log.read_bytes()
    ttrl("run", "--resume", copied)
    after = RunDirectory(copied).log.read_bytes()
    assert after.startswith(before)
    told = log_of(copied)[len(before.splitlines()) :]
    # The verdict, between how it went on and that it is done.
    assert [level for level, _ in told] == ["info", "notice", "info"]
    assert told[1][1].startswith("verdict: ")


def test_an_error_is_kept(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(HfBackend, "rollouts", Refusing.rollouts)
    result = run(place, tmp_path / "run", code=2)
    assert log_of(tmp_path / "run")[-1] == ("error", "not with me")
    assert result.stderr.splitlines()[-1] == "ttrl-pop: not with me"


def test_a_bug_leaves_its_traceback(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def broken(self: Any, *_: Any) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(HfBackend, "rollouts", broken)
    with pytest.raises(ZeroDivisionError):
        run(place, tmp_path / "run")
    level, text = log_of(tmp_path / "run")[-1]
    assert level == "error"
    assert text.startswith("Traceback")
    assert text.endswith("ZeroDivisionError: a bug\n")


def test_a_resume_elsewhere_is_warned_of_once(copied: Path) -> None:
    run_dir = RunDirectory(copied)
    found = json.loads(run_dir.environment.read_text())
    here = environment.environment("hf")
    assert {**found, "argv": None} == {**here, "argv": None}
    moved = {**found, "cpu": "another\x1b[2J", "packages": {**found["packages"], "torch": "2.0"}}
    identity.record(run_dir, "environment.json", environment.dumps(moved).encode())
    first, second = (ttrl("run", "--resume", copied).stderr.splitlines() for _ in range(2))
    warnings = [line for line in first if line.startswith("warning: the run goes on elsewhere")]
    assert len(warnings) == 1
    assert f"torch {here['packages']['torch']} (was 2.0)" in warnings[0]
    assert "(was another\\x1b[2J)" in warnings[0]
    assert not [line for line in second if line.startswith("warning")]
    assert ("warning", warnings[0].removeprefix("warning: ")) in log_of(copied)
