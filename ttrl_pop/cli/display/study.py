"""The table of a study: arms side by side, and each beside the first."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ttrl_pop.text import safe

FIGURES = {"accuracy": "rollouts", "label_accuracy": "labels"}
"""Figure → what it is called; right ones are counted."""

WITHOUT_GOLD = {"agreement": "agreement"}

OF_TEXTS = {"distance": "distance", "distinct-2": "distinct-2", "coherence": "coherence"}
"""Figures of a study that compares texts."""

OUTCOMES = ("learned", "kept", "lost", "never")

WIDE = 120
"""Columns from which on all stands in one table."""

Row = Mapping[str, Any]


def study_table(rows: Sequence[Row]) -> RenderableType:
    """Means and half widths of their 95 % intervals: figures of each arm, their differences to the first, tokens and
    what became of the labels; where nothing was trained, curves over k as well.

    Args:
        rows: as `ttrl_pop.study.rows.study_rows` has them.
    """
    arms = [row for row in rows if row["kind"] == "arm"]
    text = f"mean ± half of the 95 % interval over {_counted(arms[0], 'problem')} and {_counted(arms[0], 'seed')}"
    curves = [] if any("agreement_gain" in row for row in arms) else [_curves(arms, kind) for kind in ("pass", "maj")]
    curves += [_at_equal_coherence(rows)] if any(row["kind"] == "equal coherence" for row in rows) else []
    spaced = [part for curve in curves if curve.row_count for part in (Text(""), curve)]
    return Group(Text(text, style="dim"), _ByWidth(rows), *spaced)


class _ByWidth:
    """Arms, differences and tokens in one table where there is room, else in one each."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._arms = [row for row in rows if row["kind"] == "arm"]
        self._over = {row["arm"]: row for row in rows if row["kind"] == "difference"}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        keys = next(
            (known for known in (FIGURES, OF_TEXTS) if any(k in row for row in self._arms for k in known)), WITHOUT_GOLD
        )
        right = "right " if keys is FIGURES else ""
        gains = {"gain": "gain of rollouts"} if any("gain" in row for row in self._arms) else {}
        figures = [(f"{right}{name}", key, False) for key, name in keys.items()]
        figures += [(name, key, False) for key, name in gains.items()]
        first = self._arms[0]["arm"]
        # Short, as the columns before say of what.
        differences = [(f"{name} minus {first}", key, True) for key, name in keys.items()] if self._over else []
        if options.max_width >= WIDE:
            yield self._table([*figures, *differences], spent=True)
            return
        yield self._table(figures)
        if differences:
            yield Text("")
            yield self._table(differences)
        yield Text("")
        yield self._table([], spent=True)

    def _table(self, columns: Sequence[tuple[str, str, bool]], spent: bool = False) -> Table:
        outcomes = OUTCOMES if spent and any("labels" in row for row in self._arms) else ()
        table = _table("", *(head for head, *_ in columns), *(["tokens a run"] if spent else []), *outcomes)
        for row in self._arms:
            over = self._over.get(row["arm"], {})
            cells = [_cell(over if signed else row, key, signed) for _, key, signed in columns]
            tokens = [f"{row['tokens']:,.0f}".replace(",", " ")] if spent else []
            counts = [str(row.get("labels", {}).get(name, "")) for name in outcomes]
            table.add_row(_name(row), *cells, *tokens, *counts)
        return table


def _curves(arms: Sequence[Row], kind: str) -> Table:
    """pass@k or maj@k of all arms."""
    found = {key for row in arms for key in row if key.startswith(f"{kind}@")}
    keys = sorted(found, key=lambda key: int(key.partition("@")[2]))
    table = _table("", *(str(row["arm"]) for row in arms))
    for key in keys:
        table.add_row(Text(key), *(_cell(row, key) for row in arms))
    return table


def _at_equal_coherence(rows: Sequence[Row]) -> Table:
    """Curves beside each other where both have cost the same coherence."""
    found = [row for row in rows if row["kind"] == "equal coherence"]
    table = _table("at equal", "coherence", "distance", "distinct-2")
    for row in found:
        cells = [_cell(row, key, signed=True) for key in ("distance", "distinct-2")]
        name = Text(safe(f"{row['arm']} minus {row['to']}"), style="bold")
        table.add_row(name, Text(f"{row['coherence']:.2f}"), *cells)
    return table


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for number, head in enumerate(heads):
        table.add_column(Text(safe(head)), justify="right" if number else "left", no_wrap=bool(number))
    return table


def _name(row: Row) -> Text:
    return Text(safe(str(row["arm"])), style="bold")


def _cell(row: Row, key: str, signed: bool = False) -> Text:
    """A figure and the half width of its interval, which lies evenly around it."""
    if key not in row:
        return Text("")
    cell = Text(f"{row[key]:{'+' if signed else ''}.3f}", style="bold")
    if pair := row["intervals"].get(key):
        cell.append(f" ± {(pair[1] - pair[0]) / 2:.3f}", style="not bold")
    return cell


def _counted(row: Row, name: str) -> str:
    count = row[f"{name}s"]
    return f"{count} {name}{'' if count == 1 else 's'}"
