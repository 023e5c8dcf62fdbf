"""What can happen to a file, and what a run that was damaged and goes on must end with."""

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from ttrl_pop.cli.app import app
from ttrl_pop.errors import DamagedError
from ttrl_pop.store import files
from ttrl_pop.store.reading import LARGE

LONGEST = 120
"""Seconds after which a command hangs."""

RUNNER = CliRunner()


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _bit(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for place in [chance.randrange(len(content))] if content else []:
        content[place] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def _replaced(content: bytes) -> Callable[[Path, random.Random], None]:
    return lambda path, _: _write(path, content)


def _instead(make: Callable[[Path], object]) -> Callable[[Path, random.Random], None]:
    def replace(path: Path, chance: random.Random) -> None:
        remove(path)
        make(path)

    return replace


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**36)


def _bomb(path: Path) -> None:
    # One frame of zstd, of blocks that say how often one byte comes: 4 bytes for 128 KiB.
    block = (1 << 1 | 2**17 << 3).to_bytes(3, "little") + b"0"
    path.write_bytes(bytes.fromhex("28b52ffd 00 38") + block * (2 * LARGE // 2**17))


WAYS: dict[str, Callable[[Path, random.Random], None]] = {
    "empty": _replaced(b""),
    "cut at half": lambda path, _: os.truncate(path, path.stat().st_size // 2),
    "a byte short": lambda path, _: os.truncate(path, max(0, path.stat().st_size - 1)),
    "a bit flipped": _bit,
    "a line more": lambda path, _: _write(path, path.read_bytes() + b"{}\n"),
    "null": _replaced(b"null\n"),
    "a list": _replaced(b"[]\n"),
    "an object": _replaced(b"{}\n"),
    "nested": _replaced(b"[" * 200_000),
    "digits": _replaced(b'{"step": ' + b"9" * 5000 + b"}\n"),
    "random bytes": lambda path, chance: _write(path, chance.randbytes(4096)),
    "missing": _instead(lambda path: None),
    "a folder": _instead(lambda path: path.mkdir()),
    "a pipe": _instead(os.mkfifo),
    "a loop of links": _instead(lambda path: path.symlink_to(path.name)),
    "an endless device": _instead(lambda path: path.symlink_to("/dev/zero")),
    "huge": _instead(_sparse),
    "a bomb": _instead(_bomb),
}
"""Name → what happens to a file."""


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def in_time(seconds: int = LONGEST) -> Iterator[None]:
    """Raise where what is inside hangs, in a system call or not."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"hangs for {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def ended(*arguments: object) -> Result:
    """A command that may fail, but only by a line, and in time."""
    with in_time():
        result = RUNNER.invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code in (0, 1, 2), result.stderr
    if result.exit_code:
        last = result.stderr.splitlines()[-1]
        assert last.startswith("ttrl-pop: "), result.stderr
        assert len(last) < 1000
    return result


def outcome(run: Path) -> dict[str, Any]:
    """Each file of a run by its path in it, times aside. What depends on times, or on how often the run went on, is
    left out: MANIFESTs, identity.json and run.log."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_dir() or path.name in ("MANIFEST", "identity.json", "run.log", ".lock"):
            continue
        elif path.name == "metrics.jsonl":
            try:
                rows = list(files.read_lines(path))
                found[name] = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
            except DamagedError as error:
                found[name] = error.reason
        else:
            found[name] = path.read_bytes() if path.is_file() and path.stat().st_size < 2**30 else None
    return found


def unsaid(run: Path, expected: dict[str, Any], said: str) -> list[str]:
    """Files that differ from the expected ones, and of which nothing was said."""
    found = outcome(run)
    different = [name for name in {*found, *expected} if found.get(name, "none") != expected.get(name, "none")]
    return sorted(name for name in different if not any(path in said for path in _spoken_of(Path(name))))


def _spoken_of(name: Path) -> list[str]:
    """Paths in a run that a notice about a file can name: its own, and that of a checkpoint that it is in."""
    return [str(path) for path in (name, *name.parents) if path == name or len(path.parts) > 1]
