"""Pinned here: which formats become lines, which are refused by name, and that no source fills the memory."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from ttrl_pop.errors import UsageError
from ttrl_pop.read import lines as reading
from ttrl_pop.read import rows as rows_module
from ttrl_pop.read.lines import OTHERS, read_lines
from ttrl_pop.read.rows import read_rows

ROWS = b"".join(json.dumps({"id": str(i // 3), "text": "é\u2028" + "x" * i}).encode() + b"\n" for i in range(300))
PACKS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.compress,
}
SKIPPED = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
"""A zstd frame that holds nothing."""


def read_bytes(raw: bytes) -> bytes:
    return b"".join(read_lines("-", io.BytesIO(raw)))


def refused(raw: bytes) -> str:
    with pytest.raises(UsageError) as caught:
        read_bytes(raw)
    assert str(caught.value).isprintable()
    return str(caught.value)


def in_pieces(raw: bytes, pack: Callable[[bytes], bytes], pieces: int) -> bytes:
    size = -(-len(raw) // pieces)
    return b"".join(pack(raw[i : i + size]) for i in range(0, len(raw), size))


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("raw", [ROWS, ROWS[:-1], b"\n" * 70_000 + ROWS], ids=["whole", "no last end", "blank lines"])
def test_what_is_packed_is_read_whatever_its_name(raw: bytes, pack: str, pieces: int, tmp_path: Path) -> None:
    packed = in_pieces(raw, PACKS[pack], pieces)
    assert list(read_lines("-", io.BytesIO(packed))) == raw.splitlines(keepends=True)
    (tmp_path / "rollouts.jsonl").write_bytes(packed)
    assert [row.number for row in read_rows(str(tmp_path / "rollouts.jsonl"))] == [
        number for number, line in enumerate(raw.split(b"\n"), 1) if line
    ]


@pytest.mark.parametrize("raw", [lzma.compress(ROWS, lzma.FORMAT_ALONE), SKIPPED + zstandard.compress(ROWS)])
def test_rarer_beginnings_of_packs(raw: bytes) -> None:
    assert read_bytes(raw) == ROWS


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-16 packed"]
)
def test_any_unicode_is_read_as_utf_8(encoding: str) -> None:
    raw = ROWS.decode().encode(encoding.split()[0])
    assert read_bytes(gzip.compress(raw) if "packed" in encoding else raw) == ROWS
    assert read_bytes(codecs.BOM_UTF16_BE + ROWS.decode().encode("utf-16-be")) == ROWS
    assert refused(ROWS.decode().encode("utf-16")[:-1]).startswith("<stdin>: not valid UTF-16 (")


def test_a_byte_order_mark_goes_where_files_were_put_together() -> None:
    assert read_bytes(codecs.BOM_UTF8 + b"{}\n" + codecs.BOM_UTF8 + b"{}") == b"{}\n{}"


@pytest.mark.parametrize("pack", PACKS)
def test_a_damaged_pack_is_refused(pack: str) -> None:
    packed = PACKS[pack](ROWS)
    cut = f"<stdin>: ends in the middle of its {pack} data. Copy the whole file."
    assert refused(packed[:-5]) == cut
    assert refused(packed + packed[:20]) == cut
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    assert refused(bytes(flipped)).startswith(f"<stdin>: not valid {pack} (")
    assert refused(PACKS[pack](packed)) == "<stdin>: is packed twice. Unpack it once."


def test_an_empty_pack_is_an_empty_source() -> None:
    for pack in PACKS.values():
        assert read_bytes(pack(b"")) == b""


@pytest.mark.parametrize("mark", OTHERS, ids=repr)
def test_other_formats_are_refused_by_name(mark: bytes) -> None:
    name, advice = OTHERS[mark]
    assert refused(mark + b"\0\xff" * 300) == f"<stdin>: is {name}, which is not read. {advice}"
    assert refused(gzip.compress(mark)) == f"<stdin>: is {name}, which is not read. {advice}"


def test_archives_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(ROWS)
    for mode in ("w", "w:gz"):
        with tarfile.open(tmp_path / "r.tar", mode) as archive:  # type: ignore[call-overload]
            archive.add(tmp_path / "r.jsonl", "r.jsonl")
        assert ": is a tar archive, which is not read." in refused((tmp_path / "r.tar").read_bytes())
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as zipped:
        zipped.write(tmp_path / "r.jsonl")
    assert ": is a zip archive or an Excel workbook, which" in refused((tmp_path / "r.zip").read_bytes())


# --- no source fills the memory ---


class Endless:
    """A stream of one piece again and again."""

    def __init__(self, piece: bytes) -> None:
        self.piece = piece

    def readline(self, size: int, /) -> bytes:
        return self.piece[:size] if self.piece.endswith(b"\n") else self.piece * (size // len(self.piece))


def test_a_line_and_blank_lines_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LINE_LIMIT", 1 << 20)
    with pytest.raises(UsageError, match=r"^<stdin>:1: longer than 1 MiB\. Write a JSON object on each line\.$"):
        list(read_lines("-", Endless(b"\0")))
    with pytest.raises(UsageError, match=r"^<stdin>:1048577: more than 1048576 blank lines\."):
        for _ in read_lines("-", Endless(b"\n")):
            pass
    longest = b"x" * ((1 << 20) - 1) + b"\n"
    assert list(read_lines("-", io.BytesIO(longest + b"y"))) == [longest, b"y"]


def test_an_array_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "ARRAY_LIMIT", 1 << 20)
    with pytest.raises(UsageError, match=r"^<stdin>: an array of more than 1 MiB\. Write a JSON object on each line,"):
        list(read_rows("-", Endless(b"[\n")))


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("line", [b"\0", b'{"id": 1, "text": "1"}\n'], ids=["a line", "rows"])
def test_a_pack_made_to_fill_the_memory_is_refused(pack: str, line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SWOLLEN", 100)
    monkeypatch.setattr(reading, "LINE_LIMIT", 8 << 20)
    packed = PACKS[pack](line * ((10 << 20) // len(line)))
    with pytest.raises(UsageError, match=r"longer than 8 MiB|holds more than 100 times its own size"):
        for _ in read_lines("-", io.BytesIO(packed)):
            pass


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device")
def test_a_device_without_end_ends_in_a_line() -> None:
    with pytest.raises(UsageError, match=r"^/dev/zero:1: longer than 128 MiB\."):
        list(read_lines("/dev/zero"))


def test_a_pipe_with_a_name_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(zstandard.compress(ROWS),))
    writer.start()
    assert b"".join(read_lines(str(tmp_path / "pipe"))) == ROWS
    writer.join()


def test_closed_standard_input_is_one_line() -> None:
    program = "from ttrl_pop.read.lines import read_lines; list(read_lines('-'))"
    done = subprocess.run(["sh", "-c", f'"{sys.executable}" -c "{program}" <&-'], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        "ttrl_pop.errors.UsageError: <stdin>: is closed. Pipe rows into it, or name a file."
    )
