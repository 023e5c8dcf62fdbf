"""Tables for a person who looks on: answers, what a run knows of problems, measures, before and after."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from ttrl_pop.cli.display.base import Figure
from ttrl_pop.cli.display.marks import BLOCKS, NOTICE, WIDE, answer_cell, mark, number
from ttrl_pop.text import safe


def summary_table(title: str, rows: Sequence[tuple[str, Figure, Figure]], first: str, second: str) -> RenderableType:
    """Figures before and after, with their change.

    Args:
        title: stands above the table.
        rows: name, value before, value after; None where there is none.
        first, second: heads of the two columns of values.
    """
    table = Table(
        title=Text(safe(title, NOTICE), style="bold"),
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 3, 0, 0),
        header_style="dim",
    )
    table.add_column("")
    for head in (first, second, "change"):
        table.add_column(Text(safe(head)), justify="right", no_wrap=True)
    for name, before, after in rows:
        change = "" if before is None or after is None else _signed(after - before)
        table.add_row(Text(safe(name)), number(before), Text(number(after), style="bold"), change)
    return table


def answers_table(answers: Sequence[Mapping[str, Any]]) -> RenderableType:
    """One row per answered problem.

    Args:
        answers: `id`, `answer` (None without one), `agreement`, `margin`, `votes` (answer → how many gave it)
            and `correct` (None without gold). Other keys are ignored, absent ones left blank.
    """
    return _ByWidth(lambda width: _answers(answers, width))


def states_table(states: Sequence[Mapping[str, Any]]) -> RenderableType:
    """One row per problem of a run.

    Args:
        states: `id`, `label`, `agreement`, `visits`, `flips`, `last_seen` and, with gold, `correct`.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("problem", no_wrap=True, overflow="ellipsis", max_width=24)
    for head in ("agreement", "visits", "flips", "last seen"):
        table.add_column(head, no_wrap=True, justify="right")
    table.add_column("", no_wrap=True, width=1)
    table.add_column("label")
    for state in states:
        figures = (Text(number(state[key])) for key in ("agreement", "visits", "flips", "last_seen"))
        table.add_row(Text(safe(str(state["id"]))), *figures, mark(state.get("correct")), answer_cell(state["label"]))
    return table


def measures_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """One row per figure and one column per measured system, each figure with its interval.

    Args:
        rows: `system`, figures by name, `intervals` (name → low and high) and, for a difference, `labels`
            (outcome → number of problems). Whole numbers count things and are left out, as is what is None.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("")
    for row in rows:
        table.add_column(Text(safe(str(row["system"]))), justify="right", no_wrap=True)
    names = dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, float))
    for name in names:
        cells = []
        for row in rows:
            cell = Text(f"{row[name]:.3f}" if row.get(name) is not None else "", style="bold")
            if pair := row["intervals"].get(name):
                cell.append(f" [{pair[0]:.3f}, {pair[1]:.3f}]", style="not bold")
            cells.append(cell)
        table.add_row(Text(safe(name)), *cells)
    return Stack(table, *(outcomes_line(row["labels"]) for row in rows if row.get("labels")))


def outcomes_line(outcomes: Mapping[str, int]) -> RenderableType:
    """What became of the labels, as `ttrl_pop.report.gold.outcome_table` counts it."""
    return Text(f"labels: {', '.join(f'{name} {count}' for name, count in outcomes.items())}")


class _ByWidth:
    """A renderable that is built for the width that it gets."""

    def __init__(self, build: Callable[[int], RenderableType]) -> None:
        self._build = build

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield self._build(options.max_width)


def _signed(change: float | int) -> str:
    return f"{'+' if change > 0 else ''}{number(change)}"


def _histogram(sizes: Iterable[int]) -> str:
    """The five largest clusters as blocks and numbers: `█▂▁ 12·3·1`."""
    ordered = sorted(sizes, reverse=True)
    if not ordered or ordered[0] < 1:
        return ""
    top = ordered[:5]
    blocks = "".join(BLOCKS[min(7, 8 * size // ordered[0])] for size in top)
    return f"{blocks} {'·'.join(map(str, top))}" + ("…" if len(ordered) > len(top) else "")


def _answers(answers: Sequence[Mapping[str, Any]], width: int) -> Table:
    wide = width >= WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("problem", no_wrap=True, overflow="ellipsis", max_width=max(8, width // 4))
    table.add_column("agreement", no_wrap=True)
    if wide:
        table.add_column("margin", no_wrap=True)
        table.add_column("votes", no_wrap=True, max_width=width // 4)
    table.add_column("", no_wrap=True, width=1)
    table.add_column("answer")
    for answer in answers:
        cells = [Text(safe(str(answer.get("id", "")))), Text(number(answer.get("agreement")))]
        if wide:
            votes: Mapping[str, int] = answer.get("votes") or {}
            cells += [Text(number(answer.get("margin"))), Text(_histogram(votes.values()), style="cyan")]
        given = answer.get("answer")
        table.add_row(*cells, mark(answer.get("correct")), answer_cell(None if given is None else str(given)))
    return table
