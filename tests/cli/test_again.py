"""`--resume-or-new`: the same command again, whatever stopped it."""

import json
import shutil
from pathlib import Path

import pytest
from cli.commands import final, rows_of, run, ttrl, write_lines

from ttrl_pop.store.directory import RunDirectory, clear_unfinished


def test_a_run_begins_and_the_same_command_goes_on_with_it(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    begun = run(place, out, "--resume-or-new", "--steps", 2)
    other = write_lines(tmp_path / "other.jsonl", [{"id": "new", "prompt": "another"}])
    flags = ("--config", place / "c.toml", "--out", out, "--resume-or-new", "--seed", 5)
    again = ttrl("run", other, *flags, "--steps", 2)
    assert rows_of(again.stdout) == rows_of(begun.stdout), "its own problems and settings"
    ttrl("run", other, *flags, "--steps", 3)
    run(place, tmp_path / "whole")
    assert final(out) == final(tmp_path / "whole")


def test_what_a_killed_process_left_before_there_was_a_run_is_removed(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    for name in ("config.toml", ".problems.jsonl.tmp", ".lock"):
        (out / name).write_text("half")
    run(place, out, code=2)
    run(place, out, "--resume-or-new", "--steps", 1)
    assert RunDirectory(out).identity.exists()


def test_all_that_is_written_before_there_is_a_run_is_known_to_be_its_beginning(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(place, out, "--gold", place / "gold.jsonl", "--set", "holdout=0.5", "--steps", 0)
    known = json.loads((out / "identity.json").read_text())["files"]
    begun = {name for name in known if not name.startswith(("answers", "holdout.answers", "verdict"))}
    assert {"config.toml", "holdout.jsonl", "holdout.gold.jsonl", "environment.json"} <= begun
    for path in out.iterdir():
        if path.name not in begun:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    clear_unfinished(out)
    assert [*out.iterdir()] == []


@pytest.mark.parametrize("name", ["notes.txt", "checkpoints"])
def test_a_folder_with_anything_else_in_it_is_left_alone(place: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "run"
    out.mkdir()
    for each in (name, "config.toml"):
        (out / each).write_text("mine")
    clear_unfinished(out)
    assert sorted(path.name for path in out.iterdir()) == sorted([name, "config.toml"])
    assert "not empty" in run(place, out, "--resume-or-new", code=2).stderr


@pytest.mark.parametrize("flags", [(), ("--out", "x", "--plan"), ("--out", "x", "--resume", "y")])
def test_it_takes_a_run_directory_and_no_other_way_to_go_on(place: Path, flags: tuple[str, ...]) -> None:
    said = ttrl("run", place / "p.jsonl", "--resume-or-new", *flags, code=2).stderr
    assert said == "ttrl-pop: --resume-or-new goes with --out RUN, without --resume and --plan\n"
