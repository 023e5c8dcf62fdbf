"""RUN/ on disk: the names of its files, its lock, how a new one is made, and how one is found from a path in it."""

import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from filelock import lock_descriptor

from ttrl_pop.errors import UsageError
from ttrl_pop.store.files import write_atomic

IDENTITY, ENVIRONMENT = "identity.json", "environment.json"

FIT = "fit"
"""Folder of a fit of latent minds, as `ttrl-pop fit` writes it."""
HOLDOUT, HOLDOUT_GOLD = "holdout.jsonl", "holdout.gold.jsonl"
"""Problems that are measured by, and their gold answers."""

MANIFEST = "MANIFEST"
"""Lists the files of a checkpoint; written last."""


_PLAIN = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"))
"""A file is opened as what it is, and for this process alone; systems differ in what they can be asked for."""


class RunDirectory:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def problems(self) -> Path:
        return self.path / "problems.jsonl"

    @property
    def gold(self) -> Path:
        """Gold answers that the user gave, for reports after a resume."""
        return self.path / "gold.jsonl"

    @property
    def holdout(self) -> Path:
        """Problems that are measured by and never trained on."""
        return self.path / HOLDOUT

    @property
    def holdout_gold(self) -> Path:
        return self.path / HOLDOUT_GOLD

    @property
    def holdout_answers(self) -> Path:
        return self.path / "holdout.answers.jsonl"

    @property
    def verdict(self) -> Path:
        """What the run has come to, in plain words."""
        return self.path / "verdict.json"

    @property
    def identity(self) -> Path:
        """Fingerprints of model and problems. Written last when a run is created."""
        return self.path / IDENTITY

    @property
    def environment(self) -> Path:
        """On what the run works."""
        return self.path / ENVIRONMENT

    @property
    def log(self) -> Path:
        """What the run told."""
        return self.path / "run.log"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def answers(self) -> Path:
        return self.path / "answers.jsonl"

    @property
    def texts(self) -> Path:
        """Texts of the final answers, where a study compares them."""
        return self.path / "texts.jsonl.zst"

    @property
    def baseline(self) -> Path:
        return self.path / "baseline.jsonl"

    def spent(self, answers: Path) -> Path:
        """What a file of answers took: `baseline.spent.json`, `answers.spent.json`."""
        return answers.with_suffix(".spent.json")

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step_{step:04d}"

    def rollouts(self, step: int) -> Path:
        return self.path / "rollouts" / f"step_{step:04d}.jsonl.zst"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run directory for this process; the lock ends with the process, however it ends.

        Raises:
            UsageError: another process holds it, or something else stands in its place.
        """
        path = self.path / ".lock"
        try:
            # Nothing is written into it: a link under that name, in a run that came from elsewhere, changes no file.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _PLAIN, 0o666)
        except OSError as error:
            raise UsageError(f"{path}: cannot be locked ({error.strerror}); take it away") from error
        with open(descriptor, "r+b", buffering=0):
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UsageError(f"{path}: cannot be locked (no regular file); take it away")
            try:
                is_ours = lock_descriptor(descriptor, blocking=False)
            except OSError as error:
                raise UsageError(f"{path}: cannot be locked ({error.strerror}); choose a folder elsewhere") from error
            if not is_ours:
                raise UsageError(f"{self.path}: another process is working in this run directory")
            yield


def create(path: Path | None, source: str, files: Mapping[str, str]) -> RunDirectory:
    """Make a run directory and write `files` into it, the last of which makes it one.

    Args:
        path: None takes the first free one of runs/NAME-NUMBER, named after `source`.

    Raises:
        UsageError: it cannot be made, or another process was faster.
    """
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
                        write_atomic(path / name, content.encode())
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                raise
    except OSError as error:
        raise UsageError(f"run directory {path or 'runs'} cannot be made ({error.strerror}); pass --out") from error
    return run


def clear_unfinished(path: Path) -> None:
    """Remove what a process that was killed in `create` has left at `path`; anything else stays.

    Raises:
        UsageError: another process works there.
    """
    names = {"config.toml", "problems.jsonl", "gold.jsonl", HOLDOUT, HOLDOUT_GOLD, ENVIRONMENT}
    left = {*names, *(f".{name}.tmp" for name in (*names, IDENTITY)), ".lock"}
    run = RunDirectory(path)
    if not path.is_dir() or not {file.name for file in path.iterdir()} <= left:
        return
    with run.lock():
        if not os.path.lexists(run.identity):
            for name in left - {".lock"}:
                (path / name).unlink(missing_ok=True)
            (path / ".lock").unlink()


def find(path: Path) -> tuple[RunDirectory, Path | None]:
    """The run that `path` is or stands in and, where `path` is or stands in a checkpoint, that checkpoint's folder.

    `RUN/best` is the checkpoint that it points to.

    Raises:
        UsageError: it stands in no run, or in what is no checkpoint although it has the place of one.
    """
    # A path with a slip of the pen must not be taken for the folder that it would stand in.
    if not os.path.exists(path):
        raise UsageError(f"{path}: no such folder; pass a run directory, or a checkpoint in one")
    above = (path, *_real(path).parents)
    run = next((run for run in map(RunDirectory, above) if os.path.lexists(run.identity)), None)
    if run is None:
        raise UsageError(f"{path}: neither a run directory nor a checkpoint in one (no {IDENTITY})")
    checkpoints = _real(run.checkpoints)
    folder = next((folder for folder in (_real(path), *above[1:]) if folder.parent == checkpoints), None)
    if folder is None:
        return run, None
    if not (folder / MANIFEST).is_file():
        raise UsageError(f"{path}: not a whole checkpoint (no {MANIFEST})")
    return run, folder


def _real(path: Path) -> Path:
    """The path without links; one in a loop of them stays as it is, where `Path.resolve` raises."""
    return Path(os.path.realpath(path))


def _names(source: str) -> Iterator[Path]:
    """runs/NAME-1, runs/NAME-2, …"""
    stem = "stdin" if source == "-" else Path(source.removeprefix("hf:").removeprefix("gym:")).stem
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:100].strip("-.") or "run"
    return (Path("runs") / f"{name}-{n}" for n in count(1))


def _made(path: Path) -> bool:
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    return True
