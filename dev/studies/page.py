"""Print docs/STUDIES.md, made from the rows in dev/studies/measured. A test compares the two.

python -m dev.studies.page > docs/STUDIES.md

A file there is what `ttrl-pop study` has printed, below a row of its own that says how: `command`, `on` (date and
machine) and `note`, where something must be known of it. What stands above the figures is dev/studies/introduction.md.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ttrl_pop.study.design import NAMES

Row = Mapping[str, Any]

MEASURED = Path(__file__).parent / "measured"
FIGURES = {"accuracy": "right rollouts", "label_accuracy": "right labels", "gain": "gain of rollouts"}
OUTCOMES = ("learned", "kept", "lost", "never")

INTRODUCTION = Path(__file__).parent / "introduction.md"


def table(head: Sequence[str], lines: Iterable[Iterable[object]]) -> str:
    """A table as Markdown has it."""
    cells = [[str(cell) for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [[*head], ["---"] * len(head), *cells])


def cell(row: Row | None, key: str, signed: bool = False) -> str:
    """A figure with half the width of its interval."""
    if row is None or key not in row:
        return ""
    low, high = row["intervals"].get(key, (row[key], row[key]))
    return f"{row[key]:{'+' if signed else ''}.3f} ± {(high - low) / 2:.3f}"


def verdict(row: Row, key: str) -> str:
    """What a difference says, in a word."""
    low, high = row["intervals"][key]
    return "above" if low > 0 else "below" if high < 0 else "cannot be told"


def measured(head: Row, rows: Sequence[Row]) -> str:
    """What one study has come to."""
    arms = [row for row in rows if row["kind"] == "arm"]
    over = {row["arm"]: row for row in rows if row["kind"] == "difference"}
    first = arms[0]
    keys = [key for key in FIGURES if any(key in row for row in arms)]
    lines = [
        (
            row["arm"],
            *(cell(row, key) for key in keys),
            cell(over.get(row["arm"]), "accuracy", signed=True),
            cell(over.get(row["arm"]), "label_accuracy", signed=True),
            "" if row["arm"] not in over else verdict(over[row["arm"]], "accuracy"),
            f"{row['tokens']:.0f}",
            " / ".join(str(row["labels"][name]) for name in OUTCOMES) if "labels" in row else "",
        )
        for row in arms
    ]
    name = first["arm"]
    columns = ["arm", *(FIGURES[key] for key in keys), f"rollouts minus {name}", f"labels minus {name}"]
    columns += ["so rollouts are", "tokens a run", " / ".join(OUTCOMES)]
    parts = [
        f"## `{first['study']}`, {head['on']}",
        f"    {head['command']}",
        *([head["note"]] if "note" in head else []),
        f"Means over {first['problems']} problems and {first['seeds']} seeds, ± half of the 95 % interval.",
        table(columns, lines),
    ]
    if not any("gain" in row for row in arms):
        parts += [curves(arms, kind) for kind in ("pass", "maj")]
    return "\n\n".join(parts)


def curves(arms: Sequence[Row], kind: str) -> str:
    """pass@k or maj@k of all arms."""
    keys = dict.fromkeys(key for row in arms for key in row if key.startswith(f"{kind}@"))
    return table(["", *(row["arm"] for row in arms)], [(key, *(cell(row, key) for row in arms)) for key in keys])


def page() -> str:
    """The whole document."""
    parts, told = [INTRODUCTION.read_text().rstrip()], set()
    for file in sorted(MEASURED.glob("*.jsonl")):
        head, *rows = map(json.loads, file.read_text().splitlines())
        parts.append(measured(head, rows))
        told.add(rows[0]["study"])
    if missing := [f"`{name}`" for name in NAMES if name not in told]:
        parts.append(f"## Not measured yet\n\nOf {', '.join(missing)} there are no figures here yet.")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
