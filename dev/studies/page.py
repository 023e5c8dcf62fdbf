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
DIFFERENCES = {"accuracy": "rollouts", "label_accuracy": "labels"}
OF_TEXTS = {
    "distance": "distance",
    **{f"distinct-{size}": f"distinct-{size}" for size in (1, 2, 3)},
    "coherence": "coherence",
}
DIFFERENCES_OF_TEXTS = {"distance": "distance", "coherence": "coherence"}
OUTCOMES = ("learned", "kept", "lost", "never")

EQUAL = "equal coherence"
"""Kind of the rows that put curves beside each other."""

CLAIMS = (
    ("minds", "difference", "temperature", "minds", "pass@", "minds beat temperature in pass@k", -1),
    ("minds", "difference", "temperature", "minds", "maj@", "minds beat temperature in maj@k", -1),
    ("zero-shot", "difference", "minds", "temperature", "pass@", "minds beat temperature in pass@k", 1),
    ("zero-shot", "difference", "minds", "temperature", "maj@", "minds beat temperature in maj@k", 1),
    (
        "noise",
        "difference",
        "token",
        "sequence",
        "accuracy",
        "noise of a sequence beats noise of tokens, in rollouts",
        -1,
    ),
    ("noise", "difference", "token", "sequence", "maj@", "noise of a sequence beats noise of tokens, in maj@k", -1),
    ("diversity", EQUAL, "minds", "temperature", "distance", "minds are more diverse than temperature, in meaning", 1),
    ("diversity", EQUAL, "token", "minds", "distance", "noise of a sequence beats noise of tokens, in meaning", -1),
)
"""What the paper of the minds says (B-Trans, arXiv 2512.25063): study, kind of row, arm, what it is held up against,
figure (of one that ends in @ the largest k), the claim, and the sign of the difference where it holds."""

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
    texts = "distance" in first
    figures, differences = (OF_TEXTS, DIFFERENCES_OF_TEXTS) if texts else (FIGURES, DIFFERENCES)
    keys = [key for key in figures if any(key in row for row in arms)]
    outcomes = any("labels" in row for row in arms)
    lines = [
        (
            row["arm"],
            *(cell(row, key) for key in keys),
            *(cell(over.get(row["arm"]), key, signed=True) for key in differences),
            *([] if texts else ["" if row["arm"] not in over else verdict(over[row["arm"]], "accuracy")]),
            f"{row['tokens']:.0f}",
            *(
                [" / ".join(str(row["labels"][name]) for name in OUTCOMES) if "labels" in row else ""]
                if outcomes
                else []
            ),
        )
        for row in arms
    ]
    name = first["arm"]
    columns = ["arm", *(figures[key] for key in keys), *(f"{told} minus {name}" for told in differences.values())]
    columns += [*([] if texts else ["so rollouts are"]), "tokens a run", *([" / ".join(OUTCOMES)] if outcomes else [])]
    parts = [
        f"## `{first['study']}`, {head['on']}",
        f"    {head['command']}",
        *([head["note"]] if "note" in head else []),
        *claims(rows),
        f"Means over {first['problems']} problems and {first['seeds']} seeds, ± half of the 95 % interval.",
        table(columns, lines),
    ]
    if texts:
        parts += at_equal_coherence(rows)
    elif not any("gain" in row for row in arms):
        parts += [curves(arms, kind) for kind in ("pass", "maj")]
    return "\n\n".join(parts)


def claims(rows: Sequence[Row]) -> list[str]:
    """What the paper says that bears on this study, and whether it is so here; nothing where it says nothing."""
    lines = []
    for study, kind, arm, to, figure, claim, sign in CLAIMS:
        found = [row for row in rows if (row["study"], row["kind"], row.get("to")) == (study, kind, to)]
        for row in found:
            ks = [key for key in row if key.startswith(figure)] if figure.endswith("@") else [figure]
            if row["arm"] != arm or not ks or ks[-1] not in row["intervals"]:
                continue
            key = max(ks, key=lambda key: int(key.partition("@")[2] or 0))
            where = f", coherence {row['coherence']:.2f}" if kind == EQUAL else ""
            low, high = (sign * bound for bound in row["intervals"][key])
            held = "held" if min(low, high) > 0 else "not held" if max(low, high) < 0 else "cannot be told"
            lines.append((claim, f"{key}, {arm} minus {to}{where}", cell(row, key, signed=True), held))
    if not lines:
        return []
    return [
        "What the paper of the minds says (B-Trans, arXiv 2512.25063), and whether it is so here: held where the "
        "interval lies on its side of 0, not held where it lies on the other.",
        table(["the paper", "figure", "ours", "here"], lines),
    ]


def at_equal_coherence(rows: Sequence[Row]) -> list[str]:
    """Curves beside each other where both have cost the same coherence; nothing where there is no such place."""
    found = [row for row in rows if row["kind"] == EQUAL]
    if not found:
        return ["No two curves have a coherence in common."]
    lines = [
        (
            f"{row['arm']} minus {row['to']}",
            f"{row['coherence']:.2f}",
            *(cell(row, key, signed=True) for key in ("distance", "distinct-2")),
            verdict(row, "distance"),
        )
        for row in found
    ]
    return ["At equal coherence:", table(["curves", "coherence", "distance", "distinct-2", "so distance is"], lines)]


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
