"""Print a picture (SVG) of a recorded letters experiment: its regimes one below the other, as on a terminal.

python -m dev.letters > docs/letters.svg

Everything in it is of dev/letters.jsonl, which is what `ttrl-pop letters` printed. A test compares the two.
"""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from dev.picture import svg
from ttrl_pop.cli.display.letters import regime

MEASURED = Path(__file__).with_suffix(".jsonl")
COLUMNS = 136


def measured() -> list[dict[str, Any]]:
    """The rows that the picture shows, by free bits."""
    rows = [json.loads(line) for line in MEASURED.read_text().splitlines()]
    return sorted(rows, key=lambda row: float(row["kappa"]))


def picture(rows: Iterable[Mapping[str, Any]]) -> str:
    """The regimes of these rows."""
    console = Console(width=COLUMNS, file=io.StringIO(), force_terminal=True, record=True)
    console.print(Group(*(part for row in rows for part in (regime(row), Text()))), end="")
    return svg(console, "ttrl-pop letters")


if __name__ == "__main__":
    print(picture(measured()))
