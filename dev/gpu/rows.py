"""Rows of figures as JSON lines, printed as soon as they are known: what a time limit cuts off costs only the rest."""

import json
from typing import Any

Row = dict[str, Any]
MARK = "ROW "
"""A line of a phase's output that begins so holds a row."""


def say(**row: Any) -> None:
    """Print one row."""
    print(MARK + json.dumps(row), flush=True)
