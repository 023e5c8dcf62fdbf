"""JSON Lines, a JSON array or a table → rows, each with its place for errors.

    for row in read_rows("rollouts.jsonl.zst"):
        row.id(ID_FIELDS), row.get("extra.index")

A line becomes a row as soon as it is read, and memory holds no other. Which files are read, `lines` says.

Simplifications:

1. A JSON array is held as a whole.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, Literal, TypeAlias, TypeGuard

from ttrl_pop.errors import UsageError
from ttrl_pop.read.lines import ByteStream, read_lines, source_name
from ttrl_pop.read.tables import columns_of, is_parquet, parquet_values, table_values
from ttrl_pop.text import shown

ID_FIELDS = (
    *("problem_id", "question_id", "prompt_id", "custom_id"),
    *("id", "unique_id", "ID", "uid", "uuid", "problem_idx", "idx", "index"),
    *("doc_id", "task_id", "example_id", "item_id", "query_id", "qid", "request_id", "key"),
)
"""Fields of a problem's id, in the order in which they count, in problems, rollouts and gold answers alike. A plain
`id` beside one of the first four is that of the rollout or of the reply; those behind it may be what a row is about."""

ARRAY_LIMIT = 1 << 30
"""Bytes of a JSON array."""

Source: TypeAlias = str | Iterable[Mapping[str, Any]]
"""A file, `-` for standard input, or rows in memory."""

Notice: TypeAlias = Callable[[str], None]
"""Takes a line of what a user should know of a source that was read all the same."""

Refuse: TypeAlias = Callable[[UsageError], None]
"""Takes the error of a row; where it returns, the row is left out."""

Unit: TypeAlias = Literal["line", "element", "row"]
"""What rows are counted in: lines of a file, elements of an array, rows of a data set."""

EMPTY = "empty. It must hold JSON objects, one on each line or in an array."

_SHOWN_FIELDS = 8

_KINDS = 20
"""Things that `Counted` tells apart."""


def unsaid(notice: str) -> None:
    """Drop a notice, where nobody would read it."""


def refuse(error: UsageError) -> None:
    """Raise the error of a row: none is left out.

    Raises:
        UsageError: the error itself.
    """
    raise error


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
            value = self.fields.get(field)
            if value is None and "." in field:
                value = self.get(field)
            if value is not None:
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


def read_rows(source: Source, stdin: ByteStream | None = None, refused: Refuse = refuse) -> Iterator[Row]:
    """Yield the rows of a file, of `stdin` where `source` is `-`, or rows in memory as if a file held them.

    Args:
        stdin: standard input, in bytes; None is that of the process.
        refused: gets the error of a line that is no JSON object, or of such an element.

    Raises:
        UsageError: the source cannot be read, or is empty; and what `refused` raises. The message begins with file
            and line.
    """
    file = source_name(source)
    if not isinstance(source, str):
        return rows_of(_written(source, file, refused), file, "row", refused)
    if is_parquet(source):
        return rows_of(enumerate(parquet_values(source, Number), 1), file, "row", refused)
    lines = enumerate(read_lines(source, stdin), 1)
    filled = ((number, line) for number, line in lines if not line.isspace())
    start = list(islice(filled, 1))
    if not start:
        raise UsageError(f"{file}: {EMPTY}")
    if start[0][1].lstrip().startswith(b"["):
        whole = _array((line for _, line in chain(start, lines)), file)
        return rows_of(enumerate(parsed(whole, file, start[0][0]), 1), file, "element", refused)
    if (head := columns_of(start[0][1], source)) is not None:
        place = partial(_error, file, "line")
        values = table_values(lines, *head, place, refused, _DECODER.decode)
        return rows_of(values, file, "line", refused, "has a head and no rows. Write them below it, one on each line.")
    return _rows(_values(chain(start, filled), file, refused), file, "line", refused)


def rows_of(
    values: Iterable[tuple[int, Any]], file: str, unit: Unit, refused: Refuse = refuse, empty: str = EMPTY
) -> Iterator[Row]:
    """Yield rows of (number, value), counted from 1.

    Args:
        refused: gets the error of a value that is no object.
        empty: what is said where there is no value.

    Raises:
        UsageError: there is no value; and what `refused` raises.
    """
    rows = iter(values)
    start = list(islice(rows, 1))
    if not start:
        raise UsageError(f"{file}: {empty}")
    yield from _rows(chain(start, rows), file, unit, refused)


class Counted:
    """What should be known of a source, each thing said once, with how many rows it holds for and the first of them."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._found: dict[str, tuple[int, str]] = {}
        self._others = 0

    def add(self, what: str, row: Row) -> None:
        """Count a row."""
        count, first = self._found.get(what, (0, f"{row.unit} {row.number}"))
        if count or len(self._found) < _KINDS:
            self._found[what] = (count + 1, first)
        else:
            self._others += 1

    def notices(self) -> Iterator[str]:
        """A line for each thing."""
        for what, (count, first) in self._found.items():
            more = f", and {count - 1} more" if count > 1 else ""
            yield f"{self._source}: {first}{more}: {what}"
        if self._others:
            yield f"{self._source}: the like in {self._others} rows more"


def _written(rows: Iterable[Mapping[str, Any]], file: str, refused: Refuse) -> Iterator[tuple[int, Any]]:
    """Rows in memory as JSON has them."""
    for number, row in enumerate(rows, 1):
        try:
            yield number, _DECODER.decode(json.dumps(dict(row) if isinstance(row, Mapping) else row))
        except (TypeError, ValueError, RecursionError) as error:
            refused(_error(file, "row", number, f"is nothing that JSON could hold ({error})."))


# --- values ---


def is_text(value: Any) -> TypeGuard[str]:
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


# --- lines → values → rows ---


def _rows(values: Iterable[tuple[int, Any]], file: str, unit: Unit, refused: Refuse) -> Iterator[Row]:
    for number, value in values:
        if isinstance(value, dict):
            yield Row(value, file, unit, number)
        else:
            refused(_error(file, unit, number, f"must be a JSON object, got {kind(value)}."))


def _values(lines: Iterable[tuple[int, bytes]], file: str, refused: Refuse) -> Iterator[tuple[int, Any]]:
    for number, line in lines:
        try:
            value = parsed(line.removesuffix(b"\n"), file, number)
        except UsageError as error:
            refused(error)
        else:
            yield number, value


def _error(file: str, unit: Unit, number: int, message: str) -> UsageError:
    place = f"{file}:{number}" if unit == "line" else f"{file}: {unit} {number}"
    return UsageError(f"{place}: {message}")


def _array(lines: Iterable[bytes], file: str) -> bytes:
    """All bytes of a JSON array.

    Raises:
        UsageError: they are too many to be held at once.
    """
    held: list[bytes] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size > ARRAY_LIMIT:
            limit = f"{ARRAY_LIMIT >> 20} MiB"
            raise UsageError(f"{file}: an array of more than {limit}. Write a JSON object on each line, without one.")
    return b"".join(held)


def _constant(name: str) -> Number | None:
    # NaN is how data frames spell a value that is missing.
    return None if name == "NaN" else Number(name)


_DECODER = json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=_constant)


def parsed(raw: bytes, file: str, first_line: int) -> Any:
    """The JSON value in `raw`, numbers as they are spelled.

    Raises:
        UsageError: it is none; the message begins with file and line.
    """
    try:
        return _DECODER.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = first_line + raw.count(b"\n", 0, error.start)
        message = f"not valid UTF-8 (byte 0x{raw[error.start]:02x}). Save the file as UTF-8."
        raise UsageError(f"{file}:{line}: {message}") from None
    except json.JSONDecodeError as error:
        if first_line == 1 and not raw.lstrip().startswith((b"{", b"[")) and any(c in raw for c in b",\t"):
            raise UsageError(
                f"{file}: looks like CSV or TSV without a head. Name each column once in the first line, as in "
                "question,answer."
            ) from None
        line = first_line + error.lineno - 1
        reason = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        advice = "Put one whole object on each line, or all of them in one array."
        raise UsageError(f"{file}:{line}: invalid JSON ({reason}). {advice}") from None
    except RecursionError:
        raise UsageError(f"{file}:{first_line}: JSON nested too deeply. Flatten it.") from None
