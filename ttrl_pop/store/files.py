"""Files that appear whole or not at all, and JSON lines."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import zstandard

from ttrl_pop.errors import TtrlPopError
from ttrl_pop.store.reading import parse_object, raw_lines


def write_atomic(path: Path, content: bytes) -> None:
    """Make `path` hold `content`, or stay as it was, whenever the process or the machine stops.

    Raises:
        TtrlPopError: a folder stands in its place, or a file in that of its folder.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        # A link under that name, in a run that came from elsewhere, would lead the content out of the run.
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        raise TtrlPopError(f"{path}: cannot be written ({error.strerror}: {error.filename}); move that away") from error
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a file that may be there.

    Raises:
        TtrlPopError: a folder stands in its place.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if not path.is_dir():
            raise
        raise TtrlPopError(f"{path}: must be a file; move the folder that stands there away") from error


def encode_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows as the JSON Lines of `path`; compressed, with a checksum inside, where the name ends in .zst."""
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return zstandard.ZstdCompressor(write_checksum=True).compress(content) if path.suffix == ".zst" else content


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON Lines, atomically; see `encode_lines`."""
    write_atomic(path, encode_lines(path, rows))


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON Lines file, compressed or not.

    Raises:
        DamagedError: it is not one.
    """
    for line, _ in raw_lines(path):
        yield parse_object(path, line)


def whole_lines(path: Path) -> Iterator[bytes]:
    """Lines of a file that end. One that does not is being written, or was torn by a kill.

    Raises:
        DamagedError: the file cannot be read.
    """
    return (line for line, ended in raw_lines(path) if ended)


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Add one JSON line and sync it. A line torn by a kill is left out at resume."""
    with path.open("ab") as file:
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def sync_file(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    sync_file(folder)
