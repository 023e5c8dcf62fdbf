"""A file or standard input → lines of UTF-8, unpacked on the way, in bounded memory.

    for line in read_lines("rollouts.jsonl.zst"):
        ...

What a source holds is told by its first bytes, whatever its name: `PACKED` formats are unpacked, UTF-16 and UTF-32 are
read, and files of `OTHERS` are refused by name with what to do.

Simplifications:

1. A pack inside a pack is refused.
2. UTF-16 without a byte order mark is known by an ASCII bracket at its very beginning alone.
"""

import bz2
import codecs
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, runtime_checkable

import zstandard

from ttrl_pop.errors import UsageError
from ttrl_pop.text import shown

LINE_LIMIT = 128 << 20
"""Bytes of a line."""

BLANK_LIMIT = 1 << 20
"""Blank lines one after another."""

PATH_LIMIT = 4096
"""Characters of a source's name that are shown."""

SWOLLEN = 1000
"""How many times its own size a packed file may hold: text packs less well, what is made to fill a memory better."""

SMALL = 4 << 20
"""Bytes that a packed file may hold however small it is."""

_PIECE = 1 << 10
"""Bytes given to zstd at once: four may hold a block of 128 KiB, and all that a piece holds comes at once."""


@runtime_checkable
class ByteStream(Protocol):
    """What standard input has to offer; a `BinaryIO` or a `BytesIO` will do."""

    def readline(self, size: int, /) -> bytes:
        """The next line with its end, or its first `size` bytes; empty at the end of the stream."""
        ...


@runtime_checkable
class Readable(Protocol):
    """What packed bytes are read from."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, `size` at most; empty at the end."""
        ...


def read_lines(source: str, stdin: ByteStream | None = None) -> Iterator[bytes]:
    """Yield the lines of a file, or of `stdin` where `source` is `-`, with their ends and without a byte order mark.

    Args:
        stdin: standard input, in bytes; None is that of the process.

    Raises:
        UsageError: the source cannot be read, is of a format that is not read here, or holds too much.
    """
    name = source_name(source)
    if source == "-" and stdin is None and sys.stdin is None:
        raise UsageError(f"{name}: is closed. Pipe rows into it, or name a file.")
    with nullcontext(stdin or sys.stdin.buffer) if source == "-" else _open(source) as stream:
        try:
            yield from _lines(stream, name)
        except OSError as error:
            raise UsageError(f"{name}: cannot be read ({error.strerror or error}).") from error
        except UnicodeError as error:
            raise UsageError(f"{name}: not valid UTF-16 ({error}). Save the file as UTF-8.") from None


def is_stored(source: str) -> bool:
    """Whether a source is a file that can be opened twice: what is read of a pipe is gone."""
    try:
        return source != "-" and Path(source).is_file()
    except (OSError, ValueError):
        # What is wrong with it is said where it is opened.
        return False


def source_name(source: object) -> str:
    """A source as errors name it; one that is no text is rows in memory."""
    if not isinstance(source, str):
        return "<rows>"
    return "<stdin>" if source == "-" else shown(source, limit=PATH_LIMIT)


# --- formats ---


WIDE: Mapping[bytes, str] = {
    # The mark of UTF-32 begins with that of UTF-16.
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    b"{\0": "utf-16-le",
    b"[\0": "utf-16-le",
    b"\0{": "utf-16-be",
    b"\0[": "utf-16-be",
}
"""First bytes of texts that are not UTF-8, and their encodings."""


class ZstdFile(io.RawIOBase):
    """What the frames of a zstd file hold; a reader of the library would take a file that was cut for a whole one."""

    def __init__(self, packed: Readable) -> None:
        self._packed = packed
        self._frame: Any = None
        self._rest = b""
        self._held = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held:
            piece = self._rest or self._packed.read(_PIECE)
            if not piece:
                if self._frame is not None:
                    raise EOFError
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._held = memoryview(self._frame.decompress(piece))
            self._rest = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._held))
        buffer[:count] = self._held[:count]
        self._held = self._held[count:]
        return count


@dataclass(frozen=True, slots=True)
class _Pack:
    """A format that holds another file."""

    name: str
    open: Callable[[Any], Any]
    damage: type[Exception] | tuple[type[Exception], ...]
    """What it raises where the file is damaged."""


_ZSTD = _Pack("zstd", ZstdFile, zstandard.ZstdError)
_XZ = _Pack("xz", lzma.LZMAFile, lzma.LZMAError)

PACKED: Mapping[bytes, _Pack] = {
    b"\x1f\x8b": _Pack("gzip", lambda file: gzip.GzipFile(fileobj=file, mode="rb"), (OSError, zlib.error)),
    b"BZh": _Pack("bzip2", bz2.BZ2File, OSError),
    b"\xfd7zXZ\0": _XZ,
    b"]\0\0": _XZ,
    b"\x28\xb5\x2f\xfd": _ZSTD,
    # A frame to be skipped, with which some programs begin: 0x50 to 0x5f.
    **{bytes([first]) + b"\x2a\x4d\x18": _ZSTD for first in range(0x50, 0x60)},
}
"""First bytes of formats that are unpacked."""

BY_PANDAS = "Write it as JSON Lines, with pandas: {}(FILE).to_json('rows.jsonl', orient='records', lines=True)."
"""What to do with a table, read by the function of pandas that is put in."""

_UNPACK = "Unpack it, and name a JSON Lines file in it."

OTHERS: Mapping[bytes, tuple[str, str]] = {
    b"PAR1": ("a Parquet file", "Unpacked, and named as a file, it is."),
    b"ARROW1": ("an Arrow file", BY_PANDAS.format("read_feather")),
    b"FEA1": ("a Feather file", BY_PANDAS.format("read_feather")),
    b"\xff\xff\xff\xff": ("an Arrow stream", "Write it as JSON Lines, with datasets: Dataset.to_json('rows.jsonl')."),
    b"ORC": ("an ORC file", BY_PANDAS.format("read_orc")),
    b"Obj\x01": ("an Avro file", "Write its rows as JSON Lines."),
    b"\x89HDF": ("an HDF5 file", BY_PANDAS.format("read_hdf")),
    b"\x93NUMPY": ("a NumPy array", "Write its rows as JSON Lines."),
    b"SQLite format 3\0": ("an SQLite database", "Write its rows as JSON Lines."),
    b"PK\x03\x04": ("a zip archive or an Excel workbook", "Write or unpack its rows as JSON Lines."),
    b"\xd0\xcf\x11\xe0": ("an Excel workbook", BY_PANDAS.format("read_excel")),
    b"7z\xbc\xaf": ("a 7z archive", _UNPACK),
    b"Rar!": ("a RAR archive", _UNPACK),
    b"\x04\x22\x4d\x18": ("an lz4 file", _UNPACK),
    b"\x1f\x9d": ("a file of compress", _UNPACK),
    b"%PDF": ("a PDF", "Name a JSON Lines file."),
    # Pickles may run code, and are not even opened.
    **{b"\x80" + bytes([version]): ("a Python pickle", "Write its rows as JSON Lines.") for version in range(2, 6)},
    b"version https://git-lfs": ("a Git LFS pointer to the file", "Fetch it with git lfs pull."),
    b"<!DOCTYPE": ("a web page", "Download the raw file."),
    b"<!doctype": ("a web page", "Download the raw file."),
    b"<html": ("a web page", "Download the raw file."),
}
"""First bytes of formats that are not read, with their names and what to do."""

_TAR = ("a tar archive", _UNPACK)
_TAR_MARK = slice(257, 262)

_Value = TypeVar("_Value")


# --- bytes → lines ---


class _Ahead(io.RawIOBase):
    """A stream of which the first line has been read already, from its beginning."""

    def __init__(self, head: bytes, stream: ByteStream) -> None:
        self._head = head
        self._stream = stream
        self.taken = 0
        """Bytes that have been read."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._head:
            piece, self._head = self._head[: len(buffer)], self._head[len(buffer) :]
        else:
            piece = self._stream.readline(len(buffer))
        buffer[: len(piece)] = piece
        self.taken += len(piece)
        return len(piece)


class _WideText:
    """Lines of UTF-16 or UTF-32, in UTF-8."""

    def __init__(self, packed: _Ahead, encoding: str) -> None:
        self._text = io.TextIOWrapper(io.BufferedReader(packed), encoding, newline="\n")

    def readline(self, size: int, /) -> bytes:
        return self._text.readline(size).encode("utf-8", "surrogatepass")


def _lines(stream: ByteStream, name: str) -> Iterator[bytes]:
    head = stream.readline(LINE_LIMIT + 1)
    pack = _first_of(PACKED, head)
    yield from _plain(head, stream, name) if pack is None else _unpacked(_Ahead(head, stream), pack, name)


def _unpacked(packed: _Ahead, pack: _Pack, name: str) -> Iterator[bytes]:
    """Lines of what is packed.

    Raises:
        UsageError: it is damaged, or made to fill a memory.
    """
    try:
        inside = io.BufferedReader(pack.open(io.BufferedReader(packed)))
        head = inside.readline(LINE_LIMIT + 1)
        if _first_of(PACKED, head):
            raise UsageError(f"{name}: is packed twice. Unpack it once.")
        given = 0
        for line in _plain(head, inside, name):
            given += len(line)
            check_swollen(name, given, packed.taken)
            yield line
    except EOFError:
        raise UsageError(f"{name}: ends in the middle of its {pack.name} data. Copy the whole file.") from None
    except pack.damage as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UsageError(f"{name}: not valid {pack.name} ({error}). Copy the whole file.") from None


def check_swollen(name: str, given: int, taken: int) -> None:
    """Refuse what is made to fill a memory: more bytes than `taken` bytes of a file can honestly hold.

    Raises:
        UsageError: it is.
    """
    if given > SMALL and given > SWOLLEN * taken:
        advice = "Unpack it, and look at what is in it."
        raise UsageError(f"{name}: holds more than {SWOLLEN} times its own size. {advice}")


def _plain(head: bytes, stream: ByteStream, name: str) -> Iterator[bytes]:
    """Lines of a stream that is not packed, the first of which is `head`.

    Raises:
        UsageError: it is no text, or holds a line that is too long.
    """
    if (encoding := _first_of(WIDE, head)) is not None:
        stream = _WideText(_Ahead(head, stream), encoding)
        head = stream.readline(LINE_LIMIT + 1)
    elif (other := _TAR if head[_TAR_MARK] == b"ustar" else _first_of(OTHERS, head)) is not None:
        raise UsageError(f"{name}: is {other[0]}, which is not read. {other[1]}")
    line, number, blank = head, 1, 0
    while line:
        # Files that were put together have a mark at the beginning of each.
        line = line.removeprefix(codecs.BOM_UTF8) or b"\n"
        if len(line) > LINE_LIMIT:
            limit = f"{LINE_LIMIT >> 20} MiB"
            raise UsageError(f"{name}:{number}: longer than {limit}. Write a JSON object on each line.")
        blank = blank + 1 if line.isspace() else 0
        if blank > BLANK_LIMIT:
            raise UsageError(f"{name}:{number}: more than {BLANK_LIMIT} blank lines. Name a file with rows in it.")
        yield line
        line, number = stream.readline(LINE_LIMIT + 1), number + 1


def _first_of(table: Mapping[bytes, _Value], head: bytes) -> _Value | None:
    """What `table` has for the first of its keys that `head` begins with."""
    return next((value for mark, value in table.items() if head.startswith(mark)), None)


def _open(source: str) -> BinaryIO:
    name = source_name(source)
    if not source:
        raise UsageError("the path of a file is empty. Name a file, or - for standard input.")
    try:
        return Path(source).open("rb")
    except FileNotFoundError:
        is_path = bool(Path(source).suffix) or ":" in source
        advice = "Check the path." if is_path else f"For a dataset of the hub write hf:{name}."
        raise UsageError(f"{name}: no such file. {advice}") from None
    except IsADirectoryError:
        raise UsageError(f"{name}: is a directory. Name a JSON Lines or JSON file in it.") from None
    except OSError as error:
        raise UsageError(f"{name}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise UsageError(f"{name}: cannot be the name of a file ({error}).") from error
