"""Files that appear whole or not at all, and JSON lines."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import zstandard


def write_atomic(path: Path, content: bytes) -> None:
    """Make `path` hold `content`, or stay as it was, whenever the process or the machine stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON Lines, atomically; compressed where the name ends in .zst."""
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    write_atomic(path, zstandard.ZstdCompressor().compress(content) if path.suffix == ".zst" else content)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON Lines file, compressed or not."""
    content = path.read_bytes()
    if path.suffix == ".zst":
        content = zstandard.ZstdDecompressor().decompress(content)
    for line in content.decode("utf-8").splitlines():
        yield json.loads(line)


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Add one JSON line and sync it. A line torn by a kill is dropped by `truncate_lines` at resume."""
    with path.open("ab") as file:
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def truncate_lines(path: Path, last_step: int) -> list[dict[str, Any]]:
    """Drop the rows of steps after `last_step` and a torn last line; returns the rows that stay."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        row = json.loads(line)
        if row["step"] <= last_step:
            rows.append(row)
    write_lines(path, rows)
    return rows


def sync_file(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    sync_file(folder)
