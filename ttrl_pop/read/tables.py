"""Tables → rows: CSV and TSV from any lines, Parquet from a file.

A cell of CSV is text as it is spelled, so that a gold answer 0.50 stays 0.50 and an id 007 stays 007; an empty one is
absent, and one of `JSON_CELLS` is read as JSON where it is some. Lines become rows as they come. Parquet is read by the
package datasets, which is imported for it alone, in a stream: nothing is copied, and no network is asked.

Simplifications:

1. A table is known by its first line: names of columns, with commas, tabs or semicolons between them. One column alone
   is none, but in a file whose name ends with .csv or .tsv.
2. A column without a name, such as the row numbers that pandas writes, is not read.
"""

import csv
import glob
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ttrl_pop.errors import UsageError
from ttrl_pop.read.lines import LINE_LIMIT, is_stored, source_name
from ttrl_pop.text import shown

JSON_CELLS = (
    *("messages", "conversations", "choices", "options"),
    *("mind", "logprobs", "mean_logprob", "completion_ids", "token_ids"),
)
"""Columns of which a cell may hold a number, a list or an object: in these no text is meant."""

DELIMITERS = (",", "\t", ";")

PARQUET = b"PAR1"
"""First bytes of a Parquet file."""

USUAL = frozenset(
    (
        *("id", "question", "problem", "prompt", "query", "input", "instruction", "messages", "answer", "gold"),
        *("target", "label", "solution", "text", "completion", "response", "output", "choices", "options"),
    )
)
"""Names of columns by which a first line is a head, whatever the others are called; data hardly has such a cell."""

_NAME = re.compile(r"[^\W\d][\w .#/()-]*")
_SUFFIX = re.compile(r"\.[ct]sv(\.\w+)?", re.IGNORECASE)


def is_parquet(source: str) -> bool:
    """Whether `source` is a file of Parquet; a pipe is none, nor is what cannot be opened."""
    if not is_stored(source):
        return False
    try:
        with Path(source).open("rb") as file:
            return file.read(len(PARQUET)) == PARQUET
    except (OSError, ValueError):
        return False


def parquet_values(source: str, number: Callable[[str], Any]) -> Iterator[Any]:
    """Yield the rows of a Parquet file as JSON has them.

    Args:
        number: what a number becomes, by its spelling.

    Raises:
        UsageError: the file cannot be read.
    """
    import datasets

    name = source_name(source)
    path = glob.escape(os.path.abspath(source))
    try:
        # It keeps a lock in its cache, although it copies nothing.
        with tempfile.TemporaryDirectory() as cache:
            for row in datasets.load_dataset(
                "parquet", data_files=[path], split="train", streaming=True, cache_dir=cache
            ):
                yield _plain(row, number)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = shown(" ".join(str(error).split()), limit=300)
        raise UsageError(f"{name}: not valid Parquet ({reason}). Copy the whole file.") from error


def columns_of(line: bytes, source: str) -> tuple[list[str], str] | None:
    """Names of the columns and what stands between them, where `line` is the head of a table; "" has no name.

    Raises:
        UsageError: it is a head that names two columns alike.
    """
    if line.lstrip().startswith((b"{", b"[")):
        return None
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        return None
    delimiter = max(DELIMITERS, key=text.count)
    try:
        names = [name.strip() for name in next(csv.reader([text], delimiter=delimiter), [])]
    except csv.Error:
        return None
    named = [name for name in names if name]
    is_usual = len(names) > 1 and any(name.lower() in USUAL for name in named)
    is_lone_column = len(named) == 1 and _SUFFIX.search(Path(source).name) is not None
    if not is_usual and not (all(map(_NAME.fullmatch, named)) and (len(named) > 1 or is_lone_column)):
        return None
    if twice := [name for place, name in enumerate(named) if name in named[:place]]:
        raise UsageError(
            f"{source_name(source)}: the first line, which names the columns, has '{shown(twice[0])}' twice. "
            "Give each column a name of its own."
        )
    return names, delimiter


def table_values(
    lines: Iterable[tuple[int, bytes]],
    names: list[str],
    delimiter: str,
    place: Callable[[int, str], UsageError],
    refused: Callable[[UsageError], None],
    parse: Callable[[str], Any],
) -> Iterator[tuple[int, Any]]:
    """Yield (number of its first line, row) for each row below the head.

    Args:
        lines: those below the head, numbered.
        place: a line's number and a message → the error.
        refused: gets the error of a row.
        parse: JSON → its value.
    """
    csv.field_size_limit(LINE_LIMIT)
    taken: list[int] = []

    def texts() -> Iterator[str]:
        for number, line in lines:
            taken.append(number)
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = line[error.start]
                raise place(number, f"not valid UTF-8 (byte 0x{byte:02x}). Save the file as UTF-8.") from None

    rows = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        taken.clear()
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise place(taken[0], f"not valid CSV ({error}). Put texts with commas or quotes between quotes.") from None
        if cells is None:
            return
        if len(cells) > len(names):
            refused(place(taken[0], f"has {len(cells)} cells for {len(names)} columns. Put its texts between quotes."))
        elif cells:
            row = zip(names, cells, strict=False)
            yield taken[0], {name: _cell(name, cell, parse) for name, cell in row if name}


def _cell(name: str, cell: str, parse: Callable[[str], Any]) -> Any:
    if not cell:
        return None
    if name in JSON_CELLS:
        try:
            return parse(cell)
        except (json.JSONDecodeError, RecursionError):
            return cell
    return cell


def _plain(value: Any, number: Callable[[str], Any]) -> Any:
    """A value of Arrow as JSON has it, without what is missing in the way of data frames."""
    if isinstance(value, dict):
        return {key: _plain(inner, number) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, number) for inner in value]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, float) and math.isnan(value):
        return None
    return number(repr(value)) if isinstance(value, int | float) else str(value)
