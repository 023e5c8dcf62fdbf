"""What a run wrote, read back: regular files of bounded size, of the shape that was written, or an error in a line.

A run directory may be damaged, and it may be a stranger's. So nothing in it is opened but regular files (no pipe, no
device, no loop of links), nothing longer than it was or than its kind can be, and nothing is unpickled or imported.
What was written is known by its seal: its length and its hash. What a damaged or missing file means:

| file | meaning |
|---|---|
| `identity.json`, `config.toml`, `problems.jsonl`, `gold.jsonl` | the run cannot go on; said in a line |
| any file of a checkpoint | no checkpoint: the one before is taken, with a notice |
| `metrics.jsonl` | put back from the checkpoint, which keeps its rows, with a notice |
| `answers.jsonl` | the problems are answered again, with a notice |
| `best` | points anew to where the checkpoint says |
| `environment.json` | a notice; written anew |
| `fit/` | before the first step: the population is fitted again, with a notice; later nothing reads it |
| `run.log` | lines are added to it, or a notice where that cannot be; it is never read |
| `baseline.jsonl`, `calibration.json`, `rollouts/`, an older checkpoint | a notice; nothing else depends on it |
| `.lock`, a folder where a file has to be, or one that leads out of the run | said in a line |
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import zstandard

from ttrl_pop.errors import DamagedError

SMALL = 2**20
"""Bytes of a file that holds settings or names: config.toml, identity.json, a MANIFEST."""

LARGE = 2**32
"""Bytes of a file of rows, such as the rollouts of a step, decompressed."""

CHUNK = 2**20
"""Bytes that are read at once."""

PACKED = 2**10
"""Bytes that are decompressed at once: no more than 43 MiB come out of them, whoever packed them."""

SWOLLEN = 1000
"""How many times its own size a packed file may hold, beyond `FREE`: what is made to fill a memory holds more."""

FREE = 2**26
"""Bytes that a packed file may hold however small it is: rollouts of a collapsed policy pack to nearly nothing."""

LINE = 2**27
"""Bytes of a line."""

_SEAL = re.compile(r"([0-9]{1,15}) [0-9a-f]{64}")

_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISSOCK: "a socket",
}


@contextmanager
def opened(path: Path, limit: int) -> Iterator[BufferedReader]:
    """The regular file `path`, or that it is a link to, open for reading.

    Raises:
        DamagedError: it is not there, no regular file, longer than `limit`, or cannot be read.
    """
    try:
        # Looked at first: to open a pipe waits for its other end, and to open a device can do anything.
        _check(path, os.stat(path), limit)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            _check(path, os.fstat(descriptor), limit)
            yield file
    except FileNotFoundError:
        raise DamagedError(path, "is not there") from None
    except OSError as error:
        raise DamagedError(path, f"cannot be read ({error.strerror})") from error


def read_bytes(path: Path, limit: int = SMALL) -> bytes:
    """The whole content; raises DamagedError as `opened` does."""
    with opened(path, limit) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DamagedError(path, f"has more than the {limit} bytes that such a file can have")
    return content


def read_object(path: Path, limit: int = SMALL) -> dict[str, Any]:
    """The JSON object that the file holds.

    Raises:
        DamagedError: it holds none.
    """
    return parse_object(path, read_bytes(path, limit))


def parse_object(path: Path, content: bytes) -> dict[str, Any]:
    """The JSON object in `content`, which is that of `path` or a line of it.

    Raises:
        DamagedError: it is none.
    """
    if not content:
        raise DamagedError(path, "is empty")
    try:
        found = json.loads(content)
    except RecursionError:
        raise DamagedError(path, "is nested too deeply") from None
    except ValueError as error:
        # Bytes that are no UTF-8 and integers of thousands of digits among them.
        reason = getattr(error, "msg", None) or type(error).__name__
        raise DamagedError(path, f"is not the JSON that was written ({reason})") from None
    if not isinstance(found, dict):
        raise DamagedError(path, f"must hold a JSON object, holds {type(found).__name__}")
    return found


def read_content(path: Path, limit: int = LARGE) -> Iterator[bytes]:
    """The content in parts, decompressed where the name ends in .zst, and no more of it than `limit`.

    Raises:
        DamagedError: it is longer, made to fill a memory, or no whole frame of zstd.
    """
    total = 0
    with opened(path, limit) as file:
        for part in _decompressed(path, file) if path.suffix == ".zst" else iter(lambda: file.read(CHUNK), b""):
            total += len(part)
            if total > limit:
                raise DamagedError(path, f"holds more than the {limit} bytes that such a file can hold")
            if total > FREE and total > SWOLLEN * file.tell():
                raise DamagedError(path, f"holds more than {SWOLLEN} times its own size")
            yield part


def raw_lines(path: Path) -> Iterator[tuple[bytes, bool]]:
    """Each line of the content, without its end, and whether it has one.

    Raises:
        DamagedError: as `read_content` does, or a line is too long.
    """
    held: list[bytes] = []
    length = 0
    for part in read_content(path):
        *ends, rest = part.split(b"\n")
        for piece in (*(end + b"\n" for end in ends), rest):
            held.append(piece)
            length += len(piece)
            if length > LINE:
                raise DamagedError(path, f"has a line of more than the {LINE} bytes that one can have")
            if piece.endswith(b"\n"):
                yield b"".join(held)[:-1], True
                held.clear()
                length = 0
    if last := b"".join(held):
        yield last, False


def seal(content: bytes) -> str:
    """What `content` is known by: its length and its SHA-256."""
    return f"{len(content)} {hashlib.sha256(content).hexdigest()}"


def seal_of(path: Path) -> str:
    """The seal of a file that this process has written."""
    with path.open("rb") as file:
        return f"{path.stat().st_size} {hashlib.file_digest(file, 'sha256').hexdigest()}"


def verify(path: Path, *seals: object) -> None:
    """Check that the file is what one of these seals was made of.

    Raises:
        DamagedError: it is not, or none of them is a seal.
    """
    lengths = {text: int(found[1]) for text in seals if isinstance(text, str) and (found := _SEAL.fullmatch(text))}
    if not lengths:
        raise DamagedError(path, "has no seal to be known by")
    with opened(path, 2**63) as file:
        size = os.fstat(file.fileno()).st_size
        if size not in lengths.values():
            written = " or ".join(map(str, lengths.values()))
            raise DamagedError(path, f"has {size} bytes where {written} were written" if size else "is empty")
        if f"{size} {hashlib.file_digest(file, 'sha256').hexdigest()}" not in lengths:
            raise DamagedError(path, "has other bytes than were written")


def _check(path: Path, status: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        what = next((name for is_kind, name in _KINDS.items() if is_kind(status.st_mode)), "something else")
        raise DamagedError(path, f"is {what} where a file has to be")
    if status.st_size > limit:
        raise DamagedError(path, f"has {status.st_size} bytes, more than the {limit} that such a file can have")


def _decompressed(path: Path, file: BufferedReader) -> Iterator[bytes]:
    """The one frame of a compressed file, part by part."""
    frame = zstandard.ZstdDecompressor().decompressobj()
    while packed := file.read(PACKED):
        try:
            yield frame.decompress(packed)
        except zstandard.ZstdError as error:
            raise DamagedError(path, f"is not the zstd that was written ({error})") from None
        if frame.eof and (frame.unused_data or file.read(1)):
            raise DamagedError(path, "goes on behind its end")
    if not frame.eof:
        raise DamagedError(path, "is cut off" if path.stat().st_size else "is empty")
