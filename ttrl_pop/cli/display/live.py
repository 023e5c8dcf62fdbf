"""The live view: progress, curves and the votes of the current step, drawn in place on a terminal."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

from rich import live
from rich.console import Console, ConsoleOptions, RenderableType
from rich.console import Group as Stack
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ttrl_pop.cli.display.base import NOTHING, Display, Figure
from ttrl_pop.cli.display.marks import (
    NOTICE,
    POINTS,
    WIDE,
    answer_cell,
    bar,
    clock_time,
    mark,
    number,
    sparkline,
    time_left,
    warning_of,
)
from ttrl_pop.cli.display.time_left import TimeLeft
from ttrl_pop.sample.meter import Meter
from ttrl_pop.text import safe
from ttrl_pop.types import Load, StepReport, Tally, Work

ROWS = 256
"""Newest rows of a step that are kept; more than any terminal shows."""

CURVES = {
    "agreement": "vote/agreement",
    "accuracy": "rollout/accuracy",
    "reward": "reward/mean",
    "kl": "learn/kl",
    "sigma": "population/sigma",
    "entropy": "rollout/entropy",
    "gap": "learn/logprob_gap",
    "tokens/s": "time/tokens_per_s",
}
"""Name of a curve → metric, the first to be shown where there is little room first."""


@dataclass(frozen=True, slots=True)
class _Line:
    """What the table of votes keeps of a tally, so that the rollouts can be freed."""

    problem: str
    agreement: float
    margin: float
    label: str | None
    correct: bool | None


@dataclass(slots=True)
class _Curve:
    """A figure over the steps: its first value and the newest ones."""

    first: float | int
    points: deque[Figure]


class Live(Display):
    """The display for a terminal, drawn anew four times a second at most.

    While a step is under way, the rows of the one before stay below, dimmed, until new ones take their
    places: the view keeps its height.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        # The refresh thread draws while the run writes. Never call the console or rich's Live under this
        # lock: they hold locks of their own while they draw. Reentrant, as a signal handler may give notice.
        self._lock = threading.RLock()
        self._live = live.Live(
            self,
            console=console,
            refresh_per_second=4,
            # stdout carries data and must reach it untouched.
            redirect_stdout=False,
        )
        self._title = ""
        self._steps = self._done = self._done_before = 0
        self._started = clock()
        self._phase = ""
        self._rollouts = self._count = 0
        self._time_left = TimeLeft(NOTHING, Meter(), clock)
        self._rows: list[_Line] = []
        self._fresh = 0
        self._closed = True
        self._curves: dict[str, _Curve] = {}

    def __enter__(self) -> "Display":
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            with self._lock:
                self._phase = ""
        self._live.stop()

    def begin(self, title: str, steps: int, done: int, load: Load = NOTHING, meter: Meter | None = None) -> None:
        with self._lock:
            self._title = safe(title, NOTICE)
            self._steps, self._done, self._done_before = steps, done, done
            self._started = self._clock()
            self._phase, self._rollouts = "", 0
            self._time_left = TimeLeft(load, meter or Meter(), self._clock)

    def phase(self, text: str, rollouts: int = 0, work: Work | None = None) -> None:
        with self._lock:
            self._phase, self._rollouts, self._count = safe(text), rollouts if work != "learn" else 0, 0
            self._time_left.begin(work, rollouts)
            if self._rollouts:
                self._close_table()

    def tally(self, tally: Tally, correct: bool | None) -> None:
        # Cut here, so that a row never holds a megabyte that a model wrote.
        label = None if tally.label is None else safe(tally.label)
        row = _Line(safe(tally.group.problem.id), tally.agreement, tally.margin, label, correct)
        with self._lock:
            if self._closed:
                self._closed, self._fresh = False, 0
            self._count += 1
            self._rows[self._fresh : self._fresh + 1] = [row]
            if len(self._rows) > ROWS:
                del self._rows[0]
            self._fresh = min(self._fresh + 1, ROWS)

    def step(self, report: StepReport) -> None:
        with self._lock:
            self._done = max(self._done, report.step)
            if report.step > self._done_before:
                self._time_left.end()
            else:
                self._time_left.recall(report)
            self._close_table()
            for name, key in CURVES.items():
                self._extend(name, report.metrics.get(key))
        if report.step > self._done_before and (warning := warning_of(report)):
            self.warning(warning)

    def notice(self, text: str) -> None:
        self._console.print(Text(safe(text, NOTICE)))

    def warning(self, text: str) -> None:
        self._console.print(Text(f"warning: {safe(text, NOTICE)}", style="yellow"))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        with self._lock:
            frame = self._frame(options.max_width, options.size.height - 1)
        yield frame

    def _close_table(self) -> None:
        """The next tally starts a new table; rows that this one did not replace go."""
        if not self._closed:
            del self._rows[self._fresh :]
        self._closed = True

    def _extend(self, name: str, value: Figure) -> None:
        if name not in self._curves:
            if value is None:
                return
            self._curves[name] = _Curve(value, deque(maxlen=POINTS))
        self._curves[name].points.append(value)

    def _frame(self, width: int, height: int) -> RenderableType:
        parts: list[RenderableType] = [
            # Nothing has a title while the model is loaded.
            *([Text(self._title, style="bold", no_wrap=True, overflow="ellipsis")] if self._title else []),
            self._progress(width),
        ]
        left = height - bool(self._title) - bool(self._steps) - bool(self._phase)
        curves = min(len(self._curves), max(0, left // 2 - 1))
        if curves:
            parts += [Text(), self._curve_table(width, curves)]
            left -= curves + 1
        if self._rows and left > 3:
            parts += [Text(), self._vote_table(width, left - 2)]
        return Stack(*parts)

    def _progress(self, width: int) -> Table:
        now = self._clock()
        bars = Table.grid(padding=(0, 2, 0, 0), expand=True)
        bars.add_column(no_wrap=True, overflow="ellipsis", max_width=max(8, width // 2))
        bars.add_column(ratio=1, min_width=4)
        bars.add_column(no_wrap=True, style="dim")
        if self._steps:
            bars.add_row(
                Text(f"step {self._done}/{self._steps}"),
                _progress_bar(self._steps, self._done),
                Text(self._times(now, width)),
            )
        if self._phase:
            if self._rollouts:
                done = self._time_left.done
                share: RenderableType = _progress_bar(self._rollouts, done)
                spent = f"{done}/{self._rollouts}"
                if (tokens := self._time_left.tokens) and width >= WIDE:
                    spent += f", {tokens} tokens"
            else:
                share, spent = Text(), clock_time(self._time_left.elapsed)
            bars.add_row(Text(self._phase, style="dim"), share, Text(spent))
        return bars

    def _times(self, now: float, width: int) -> str:
        elapsed = clock_time(now - self._started)
        left = time_left(self._time_left.left()) if self._phase else []
        return ", ".join([elapsed] * (width >= WIDE or not left) + left)

    def _curve_table(self, width: int, count: int) -> Table:
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(style="dim", no_wrap=True, justify="right")
        table.add_column(style="bold", no_wrap=True)
        table.add_column(style="cyan", no_wrap=True)
        room = width - 30
        names = [name for name in CURVES if name in self._curves][:count]
        for name in names:
            curve = self._curves[name]
            drawn = sparkline(list(curve.points), room)
            table.add_row(f"{name} ", f"{number(curve.first)} →", number(curve.points[-1]), Text(f" {drawn}"))
        return table

    def _vote_table(self, width: int, room: int) -> RenderableType:
        """At most `room` rows, the newest among them; the last one says how many are hidden."""
        total = max(self._count, len(self._rows))
        shown = min(len(self._rows), room if total <= room else room - 1)
        start = min(max(0, self._fresh - shown), len(self._rows) - shown)
        wide = width >= WIDE
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("problem", no_wrap=True, overflow="ellipsis", width=max(8, width // 5))
        table.add_column("agreement", no_wrap=True)
        if wide:
            table.add_column("margin", no_wrap=True)
        table.add_column("", no_wrap=True, width=1)
        table.add_column("label")
        for index in range(start, start + shown):
            row = self._rows[index]
            cells = [Text(row.problem), Text(number(row.agreement))]
            if wide:
                cells[1].append(f" {bar(row.agreement, width // 6)}", style="cyan")
                cells.append(Text(number(row.margin)))
            current = self._closed or index < self._fresh
            table.add_row(*cells, mark(row.correct), answer_cell(row.label), style="" if current else "dim")
        if hidden := total - shown:
            return Stack(table, Text(f"… and {hidden} more", style="dim"))
        return table


def _progress_bar(total: int, completed: int) -> ProgressBar:
    # rich's own track is dark grey, which on a light terminal outshines the bar.
    return ProgressBar(total, completed, style="dim", complete_style="cyan", finished_style="cyan")
