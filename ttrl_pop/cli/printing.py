"""Rows on standard output: JSON lines, or a table where a person looks on."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import RenderableType

from ttrl_pop.cli.display.console import console_on


def print_rows(
    rows: Sequence[Mapping[str, Any]], table: Callable[[Sequence[Mapping[str, Any]]], RenderableType]
) -> None:
    """Print all rows at once."""
    if sys.stdout.isatty():
        console_on(sys.stdout).print(table(rows))
        return
    for row in rows:
        print(json.dumps(row))
    sys.stdout.flush()


def print_row(row: Mapping[str, Any]) -> None:
    """Print one row, for a reader who waits for it."""
    print(json.dumps(row), flush=True)
