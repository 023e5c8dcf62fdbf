"""Files of a stranger's run: what is read of them has bounds."""

from pathlib import Path

import pytest
import zstandard

from ttrl_pop.errors import DamagedError
from ttrl_pop.store import files, reading

ROW = b'{"id": "1", "text": "111111111111"}\n'


@pytest.fixture(autouse=True)
def bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FREE", 1 << 20)
    monkeypatch.setattr(reading, "LINE", 1 << 21)


def packed(path: Path, content: bytes) -> Path:
    path.write_bytes(zstandard.compress(content))
    return path


def test_a_small_file_that_is_made_to_fill_a_memory_is_damaged(tmp_path: Path) -> None:
    path = packed(tmp_path / "rows.jsonl.zst", ROW * (64 << 20 >> 5))
    seen: list[int] = []
    with pytest.raises(DamagedError, match="holds more than 1000 times its own size"):
        seen.extend(len(row) for row in files.read_lines(path))
    # A piece of 1 KiB holds some MiB here.
    assert len(seen) * len(ROW) < 24 << 20


def test_rows_that_pack_to_nearly_nothing_are_read(tmp_path: Path) -> None:
    rows = (1 << 20) // len(ROW)
    path = packed(tmp_path / "rows.jsonl.zst", ROW * rows)
    assert path.stat().st_size < (1 << 20) // reading.SWOLLEN
    assert sum(1 for _ in files.read_lines(path)) == rows


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.zst"])
def test_a_line_has_a_limit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FREE", 1 << 30)
    content = b'{"text": "' + b"x" * (6 << 20) + b'"}\n'
    path = packed(tmp_path / name, content) if name.endswith(".zst") else tmp_path / name
    if not name.endswith(".zst"):
        path.write_bytes(content)
    with pytest.raises(DamagedError, match="has a line of more than the 2097152 bytes"):
        next(files.read_lines(path))


def test_lines_come_whole_however_they_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", 3)
    path = tmp_path / "rows"
    path.write_bytes(b"one\n\ntwo, longer\nrest")
    assert [*reading.raw_lines(path)] == [(b"one", True), (b"", True), (b"two, longer", True), (b"rest", False)]
