"""A tiny model with its problems, a run of it, and processes to run commands in; each made once."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli.commands import CONFIG, GOLD, child, ended, run, write_lines
from fakes import PROBLEMS, save_tiny
from typer.testing import Result


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, problems, gold answers and a configuration."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny(folder / "tiny")
    write_lines(folder / "p.jsonl", [{"id": p.id, "prompt": p.prompt} for p in PROBLEMS])
    write_lines(folder / "gold.jsonl", [{"id": i, "answer": a} for i, a in GOLD.items()])
    (folder / "c.toml").write_text(CONFIG.format(model=json.dumps(str(folder / "tiny"))))
    return folder


@pytest.fixture(scope="session")
def trained(place: Path) -> tuple[Path, Result]:
    """A run with gold answers, and what it printed."""
    out = place / "trained"
    return out, run(place, out, "--gold", place / "gold.jsonl", "--set", "baseline=true")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that name no directory are made below the test's own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def copied(trained: tuple[Path, Result], tmp_path: Path) -> Path:
    """A copy of the trained run, to go on with."""
    return Path(shutil.copytree(trained[0], tmp_path / "copy", symlinks=True))


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., Any]]:
    """Begins a command in a process of its own, forked from a server that has done the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ttrl_pop.cli.run"])
    started = []

    def begin(
        *arguments: object,
        stdout: object,
        stderr: object = os.devnull,
        stdin: object = os.devnull,
        largest: int | None = None,
        **environment: object,
    ) -> Any:
        streams = (str(stream) for stream in (stdout, stderr, stdin))
        variables = {name: str(value) for name, value in environment.items()}
        process = context.Process(target=child, args=([str(a) for a in arguments], *streams, largest, variables))
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.join()


@pytest.fixture(scope="session")
def long_run(place: Path, start: Callable[..., Any]) -> Path:
    """An undisturbed run of 40 steps."""
    out = place / "long"
    arguments = ("--config", place / "c.toml", "--steps", 40, "--out", out)
    assert ended(start("run", place / "p.jsonl", *arguments, stdout=os.devnull)) == 0
    return out
