"""Marks that displays and tables are made of: numbers, bars, curves, check marks."""

import math
from collections.abc import Sequence

from rich.text import Text

from ttrl_pop.cli.display.base import Figure
from ttrl_pop.cli.display.time_left import Left
from ttrl_pop.text import safe
from ttrl_pop.types import StepReport

BLOCKS = "▁▂▃▄▅▆▇█"

POINTS = 60
"""Newest points of a curve that are kept."""

WIDE = 60
"""Columns from which every column of a table is shown."""

NOTICE = 470
"""Characters of a notice that are shown."""


def sparkline(values: Sequence[Figure], width: int = POINTS) -> str:
    """The last `width` values as block characters; None, nan and infinities leave a gap.

    The lowest value is the lowest block and the highest the highest, unless they differ by less than a tenth
    of the largest magnitude: noise around a constant is drawn flat.
    """
    points = [value if value is not None and math.isfinite(value) else None for value in values[-max(1, width) :]]
    known = [value for value in points if value is not None]
    # Dividing first keeps the range finite for any floats.
    scale = max(map(abs, known), default=0.0) or 1.0
    low, high = min(known, default=0.0) / scale, max(known, default=0.0) / scale
    span, middle = max(high - low, 0.1), (high + low) / 2
    top = len(BLOCKS) - 1
    return "".join(
        " " if value is None else BLOCKS[min(top, int(((value / scale - middle) / span + 0.5) * len(BLOCKS)))]
        for value in points
    )


def bar(share: float, width: int) -> str:
    """A line over `share` of `width` characters, to half a character."""
    halves = round(min(1.0, max(0.0, share)) * width * 2)
    return ("━" * (halves // 2) + "╸" * (halves % 2)).ljust(width)


def number(value: Figure) -> str:
    """Two decimals, or two digits where that would hide the value; `-` for None."""
    if value is None:
        return "-"
    size = abs(value)
    if not math.isfinite(size) or 0 < size < 0.1 or size >= 1e5:
        return f"{value:.2g}"
    return f"{value:.0f}" if size >= 100 else f"{value:.2f}"


def clock_time(seconds: float) -> str:
    """`4:07`, or `1:04:07` from an hour on."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def duration(seconds: float) -> str:
    """`45 s`, `14 min 36 s`, `2 h 45 min` or `3 d 4 h`, rounded to the smaller unit."""
    if (whole := round(seconds)) < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if (minutes := round(seconds / 60)) < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def time_left(left: Left | None) -> list[str]:
    """`2:10 left`, `over 2:10 left` where there is more of which nothing is known, or nothing at all."""
    return [] if left is None else [f"{'over ' * left.at_least}{clock_time(left.seconds)} left"]


def warning_of(report: StepReport) -> str | None:
    """What a person must be told of a step at once, if anything."""
    if report.alarm:
        return f"step {report.step} looks like a collapse: {safe(report.alarm, NOTICE)}"
    bad = report.metrics.get("learn/bad_updates")
    if not bad:
        return None
    return f"step {report.step}: updates skipped for a loss or gradient that was not finite: {bad:.0f}"


def mark(correct: bool | None) -> Text:
    """A check mark or a cross; a blank where gold is unknown."""
    if correct is None:
        return Text(" ")
    return Text("✓", style="green") if correct else Text("✗", style="red")


def answer_cell(answer: str | None) -> Text:
    """An answer, cut by its cell: its column, alone in being allowed to wrap, gives way in a narrow table."""
    text = Text("no answer", style="dim italic") if answer is None else Text(safe(answer))
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
