"""JSON Lines or a JSON array, from a file or standard input → rows, each with its place for errors.

    for row in read_rows("rollouts.jsonl.zst"):
        row.id(ID_FIELDS), row.get("extra.index")

A line becomes a row as soon as it is read, and memory holds no other. What is in a file whose name ends in .zst is
decompressed on the way.

Simplifications:

1. A JSON array is held as a whole.
"""

import codecs
import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, TypeAlias, runtime_checkable

import zstandard

from ttrl_pop.errors import UsageError
from ttrl_pop.text import shown

ID_FIELDS = ("id", "unique_id", "ID", "uid", "problem_idx", "idx", "index")
"""Fields of a row's id, in the order in which they count."""

PATH_LIMIT = 4096
"""Characters of a source's name that are shown."""

Unit: TypeAlias = Literal["line", "element", "row"]
"""What rows are counted in: lines of a file, elements of an array, rows of a data set."""

_SHOWN_FIELDS = 8

_CHUNK = 1 << 16


@runtime_checkable
class ByteStream(Protocol):
    """What standard input has to offer, its lines; a `BinaryIO` or a `BytesIO` will do."""

    def __iter__(self) -> Iterator[bytes]: ...


class Number(str):
    """A JSON number as it is spelled: gold 0.50 stays 0.50, and an integer may have any length."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One JSON object and where it stands in its file."""

    fields: dict[str, Any]
    file: str
    unit: Unit
    number: int

    def get(self, key: str) -> Any:
        """The field `key`, else the field that the dots in `key` lead to, else None."""
        value = self.fields.get(key)
        if value is not None or "." not in key:
            return value
        inner: Any = self.fields
        for part in key.split("."):
            inner = inner.get(part) if isinstance(inner, dict) else None
        return inner

    def present(self, fields: Iterable[str]) -> Iterator[tuple[str, Any]]:
        """Yield each of `fields` that is there and not null, with its value."""
        for field in fields:
            if (value := self.get(field)) is not None:
                yield field, value

    def first(self, fields: Iterable[str]) -> tuple[str | None, Any]:
        """The first of `fields` that is there and not null, with its value; (None, None) without one."""
        return next(self.present(fields), (None, None))

    def id(self, fields: Iterable[str]) -> str | None:
        """The id in the first of `fields` that is there; None without one.

        Raises:
            UsageError: it is neither text nor a number.
        """
        field, value = self.first(fields)
        if field is None:
            return None
        if (row_id := spelling(value)) is None:
            raise self.error(f"id field {shown(field)} must be text or a number, got {kind(value)}.")
        self.check_encodable("id", row_id)
        return row_id

    def listed(self) -> str:
        """The fields that are not null, by name."""
        names = [shown(field) for field, value in self.fields.items() if value is not None]
        return ", ".join(names[:_SHOWN_FIELDS] + ["…"] * (len(names) > _SHOWN_FIELDS)) or "nothing"

    def check_encodable(self, what: str, text: str) -> None:
        """Refuse a text with half a surrogate pair; `what` names it.

        Raises:
            UsageError: `text` is none that UTF-8 can write.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise self.error(
                f"{what} holds the lone surrogate \\u{code:04x}, which tokenizers refuse. "
                "Write the whole pair or leave it out."
            ) from None

    def error(self, message: str) -> UsageError:
        """An error that begins with the place of this row."""
        return _error(self.file, self.unit, self.number, message)


def read_rows(source: str, stdin: ByteStream | None = None) -> Iterator[Row]:
    """Yield the rows of a file, or of `stdin` where `source` is `-`.

    Args:
        stdin: standard input, in bytes; None is that of the process.

    Raises:
        UsageError: the source cannot be read, is empty, or holds something else than JSON objects; the message begins
            with file and line.
    """
    file = source_name(source)
    lines = enumerate(_unmarked(_read_lines(source, stdin)), 1)
    filled = ((number, line) for number, line in lines if line and not line.isspace())
    start = list(islice(filled, 1))
    if start and start[0][1].lstrip().startswith(b"["):
        whole = b"".join(line for _, line in chain(start, lines))
        return rows_of(enumerate(_parse(whole, file, start[0][0]), 1), file, "element")
    values = ((number, _parse(line.removesuffix(b"\n"), file, number)) for number, line in chain(start, filled))
    return rows_of(values, file, "line")


def rows_of(values: Iterable[tuple[int, Any]], file: str, unit: Unit) -> Iterator[Row]:
    """Yield rows of (number, value), counted from 1.

    Raises:
        UsageError: a value is no object, or there is none.
    """
    number = 0
    for number, value in values:
        if not isinstance(value, dict):
            raise _error(file, unit, number, f"must be a JSON object, got {kind(value)}.")
        yield Row(value, file, unit, number)
    if not number:
        raise UsageError(f"{file}: empty. It must hold JSON objects, one on each line or in an array.")


def source_name(source: str) -> str:
    """A source as errors name it."""
    return "<stdin>" if source == "-" else shown(source, limit=PATH_LIMIT)


# --- values ---


def is_text(value: Any) -> bool:
    """Whether a JSON value is a string; numbers keep their spelling in one, and are none."""
    return isinstance(value, str) and not isinstance(value, Number)


def spelling(value: Any) -> str | None:
    """A scalar as text; None for null, NaN, lists and objects."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and not math.isnan(value)):
        return repr(value)
    return None


def joined(content: Any) -> Any:
    """The text of a list of text parts; anything else as it is."""
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and is_text(part.get("text")) for part in content
    ):
        return "".join(part["text"] for part in content)
    return content


def kind(value: Any) -> str:
    """What a value is, for an error."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case Number() | int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "an object"


# --- source → lines → values ---


def _error(file: str, unit: Unit, number: int, message: str) -> UsageError:
    place = f"{file}:{number}" if unit == "line" else f"{file}: {unit} {number}"
    return UsageError(f"{place}: {message}")


def _read_lines(source: str, stdin: ByteStream | None) -> Iterator[bytes]:
    """Lines with their ends."""
    if source == "-":
        yield from stdin or sys.stdin.buffer
        return
    with _open(source) as file:
        try:
            yield from _decompressed(file, source_name(source)) if source.endswith(".zst") else file
        except OSError as error:
            raise UsageError(f"{source_name(source)}: cannot be read ({error.strerror}).") from error


def _unmarked(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Lines without a byte order mark."""
    yield next(lines, b"").removeprefix(codecs.BOM_UTF8)
    yield from lines


def _open(source: str) -> BinaryIO:
    name = source_name(source)
    try:
        return Path(source).open("rb")
    except FileNotFoundError:
        advice = "Check the path." if Path(source).suffix else f"For a dataset of the hub write hf:{name}."
        raise UsageError(f"{name}: no such file. {advice}") from None
    except IsADirectoryError:
        raise UsageError(f"{name}: is a directory. Name a JSON Lines or JSON file in it.") from None
    except OSError as error:
        raise UsageError(f"{name}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise UsageError(f"{name}: cannot be the name of a file ({error}).") from error


def _decompressed(file: BinaryIO, name: str) -> Iterator[bytes]:
    held: list[bytes] = []
    for chunk in _chunks(file, name):
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            yield b"".join([*held, end, b"\n"])
            held.clear()
        held.append(rest)
    if last := b"".join(held):
        yield last


def _chunks(file: BinaryIO, name: str) -> Iterator[bytes]:
    """What the frames of a zstd file hold; a reader of the library would take a file that was cut for a whole one."""
    frame = None
    while packed := file.read(_CHUNK):
        while packed:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                yield frame.decompress(packed)
            except zstandard.ZstdError as error:
                raise UsageError(f"{name}: not valid zstd ({error}). Name an uncompressed file otherwise.") from None
            packed, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise UsageError(f"{name}: ends in the middle of its zstd frame. Copy the whole file.")


def _constant(name: str) -> Number | None:
    # NaN is how data frames spell a value that is missing.
    return None if name == "NaN" else Number(name)


_DECODER = json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=_constant)


def _parse(raw: bytes, file: str, first_line: int) -> Any:
    try:
        return _DECODER.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = first_line + raw.count(b"\n", 0, error.start)
        message = f"not valid UTF-8 (byte 0x{raw[error.start]:02x}). Save the file as UTF-8."
        raise UsageError(f"{file}:{line}: {message}") from None
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        reason = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        advice = "Put one whole object on each line, or all of them in one array."
        raise UsageError(f"{file}:{line}: invalid JSON ({reason}). {advice}") from None
    except RecursionError:
        raise UsageError(f"{file}:{first_line}: JSON nested too deeply. Flatten it.") from None
