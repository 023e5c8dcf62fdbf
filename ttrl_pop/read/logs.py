"""Logs of harnesses → rows of rollouts: lm-eval's `--log_samples` and inspect's `.eval` and `.json`.

    for row in read_logged("logs/2026-11-26_task.eval"):
        ...

A file that is no such log gives its rows as `ttrl_pop.read.rows.read_rows` does. Of lm-eval a sample counts under the
first of its filters alone, as it stands once under each. Of inspect each sample becomes a row with `id`, `output` and
`target`, those of one id together, whatever the order of epochs.

Simplifications:

1. inspect's logs are read from files, not from standard input or a pipe: an archive has its table of contents at its
   end.
"""

import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from ttrl_pop.errors import UsageError
from ttrl_pop.read.lines import LINE_LIMIT, ByteStream, ZstdFile, check_swollen, is_stored, source_name
from ttrl_pop.read.rows import ARRAY_LIMIT, Refuse, Row, Source, parsed, read_rows, refuse, rows_of

ZIP = b"PK\x03\x04"
"""First bytes of an archive."""

HEADER = "header.json"
"""Entry by which an archive is known as a log of inspect."""

ZSTD = 93
"""Number of zstd among the ways in which archives are packed; Python reads it from 3.14 on."""

# Each way to be packed has errors of its own; others are of offsets that lead nowhere, and of passwords.
_DAMAGE = (
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError),
    *(RuntimeError, ValueError, OverflowError),
)
_EPOCH = "_epoch_"
_LOCAL_HEADER = 30
"""Bytes before the name of an entry, where its data stand."""


def read_logged(
    source: Source, stdin: ByteStream | None = None, refused: Refuse = refuse, *, once: bool = False
) -> Iterator[Row]:
    """Yield the rows of a log, or of any file, as `read_rows` takes and gives them.

    Args:
        once: of a log's samples, give the first of each id alone.
    """
    samples = _inspect(source) if isinstance(source, str) and is_stored(source) else None
    if samples is not None:
        if once:
            samples = _first_of_each(samples)
        return rows_of(enumerate(samples, 1), source_name(source), "row", refused)
    return _under_one_filter(read_rows(source, stdin, refused))


def _first_of_each(samples: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for sample in samples:
        if str(sample["id"]) not in seen:
            seen.add(str(sample["id"]))
            yield sample


def _under_one_filter(rows: Iterator[Row]) -> Iterator[Row]:
    kept: dict[str, Any] = {}
    for row in rows:
        if {"doc_id", "resps", "filtered_resps", "filter"} <= row.fields.keys():
            # Files of several tasks may be joined: each has filters of its own, and counts its samples from 0.
            sample = f"{row.fields['doc_id']} {row.fields.get('doc_hash')}"
            if row.fields["filter"] != kept.setdefault(sample, row.fields["filter"]):
                continue
        yield row


def _inspect(source: str) -> Iterator[dict[str, Any]] | None:
    """Samples of a log of inspect; None where the file is none, or cannot be read."""
    try:
        with Path(source).open("rb") as file:
            head = file.readline(LINE_LIMIT)
            if head.startswith(ZIP):
                if HEADER not in zipfile.ZipFile(file).namelist():
                    return None
                return _archived(source)
            if head.strip() != b"{":
                return None
            file.seek(0)
            whole = file.read(ARRAY_LIMIT + 1)
    except (OSError, zipfile.BadZipFile):
        # `read_rows` says what is wrong with it.
        return None
    if len(whole) > ARRAY_LIMIT or b'"samples"' not in whole:
        return None
    log = parsed(whole, source_name(source), 1)
    if not isinstance(log, dict) or not isinstance(log.get("samples"), list) or "eval" not in log:
        return None
    samples = [sample for sample in log["samples"] if isinstance(sample, dict)]
    order = {key: place for place, key in enumerate(dict.fromkeys(str(sample.get("id")) for sample in samples))}
    return (_row(sample) for sample in sorted(samples, key=lambda sample: order[str(sample.get("id"))]))


def _archived(source: str) -> Iterator[dict[str, Any]]:
    """Samples of an archive, one at a time in memory.

    Raises:
        UsageError: it is damaged.
    """
    with Path(source).open("rb") as file, zipfile.ZipFile(file) as archive:
        entries = [
            entry for entry in archive.infolist() if entry.filename.startswith("samples/") and _EPOCH in entry.filename
        ]
        order = {stem: place for place, stem in enumerate(dict.fromkeys(map(_stem, entries)))}
        for entry in sorted(entries, key=lambda entry: order[_stem(entry)]):
            name = f"{source_name(source)}:{entry.filename}"
            try:
                content = _content(archive, file, entry, name)
            except _DAMAGE as error:
                told = f"{entry.filename} is damaged ({str(error) or 'cut off'})"
                raise UsageError(f"{source_name(source)}: {told}. Copy the whole file.") from None
            sample = parsed(content, name, 1)
            if isinstance(sample, dict):
                yield _row(sample)


def _stem(entry: zipfile.ZipInfo) -> str:
    return entry.filename.rpartition(_EPOCH)[0]


def _content(archive: zipfile.ZipFile, file: BinaryIO, entry: zipfile.ZipInfo, name: str) -> bytes:
    """What an entry holds; `file` is the archive's.

    Raises:
        UsageError: it is too long, or made to fill a memory.
    """
    if entry.file_size > LINE_LIMIT:
        raise UsageError(f"{name}: a sample of more than {LINE_LIMIT >> 20} MiB. Log less of it.")
    check_swollen(name, entry.file_size, entry.compress_size)
    if entry.compress_type != ZSTD:
        return archive.read(entry)
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER)
    # Lengths of the name and of what else stands before the data.
    file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), io.SEEK_CUR)
    # The table of contents may be a lie, and so may be what a frame says of its size: no more is unpacked than it says.
    unpacked = io.BufferedReader(ZstdFile(_Part(file, entry.compress_size)))
    content = unpacked.read(entry.file_size + 1)
    if len(content) != entry.file_size:
        raise zipfile.BadZipFile(f"it holds other than the {entry.file_size} bytes that it says")
    return content


class _Part:
    """The next so many bytes of a file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int, /) -> bytes:
        piece = self._file.read(min(size, self._left))
        self._left -= len(piece)
        return piece


def _row(sample: dict[str, Any]) -> dict[str, Any]:
    output = sample.get("output")
    choices = output.get("choices") if isinstance(output, dict) else None
    return {"id": sample.get("id"), "output": {"choices": choices or []}, "target": sample.get("target")}
