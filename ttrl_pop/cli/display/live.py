"""The view for the person who watches, on stderr: a live one on a terminal, one plain line a step elsewhere.

    with open_display(quiet=False, stream=sys.stderr) as display:
        display.begin("smollm2 on tables.jsonl", steps=8, done=0)
        display.phase("step 1: sampling", total=16)
        display.tally(tally, correct=True)
        display.step(report)

What a model or a file wrote reaches the screen through `safe` and `rich.text.Text` only, so that it can
neither colour the screen, move the cursor nor be read as markup. A reader that goes away silences the display
and leaves the run alone.
"""

import math
import threading
import time
import unicodedata
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TextIO, TypeAlias, cast, runtime_checkable

from rich import live
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ttrl_pop.types import StepReport, Tally

BLOCKS = "▁▂▃▄▅▆▇█"
POINTS = 60
"""Newest points of a curve that are kept."""
ROWS = 256
"""Newest rows of a step that are kept; more than any terminal shows."""
WIDE = 60
"""Columns from which every column of a table is shown."""
NOTICE = 400
"""Characters of a notice that are shown."""

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
LINE = {
    "agreement": "vote/agreement",
    "accuracy": "rollout/accuracy",
    "label_accuracy": "vote/label_accuracy",
    "reward": "reward/mean",
    "entropy": "rollout/entropy",
    "sigma": "population/sigma",
    "kl": "learn/kl",
    "gap": "learn/logprob_gap",
}
NEEDS_GOLD = {"accuracy", "label_accuracy"}

Figure: TypeAlias = float | int | None


@runtime_checkable
class Stream(Protocol):
    """What is needed of `sys.stderr` or of whatever stands in for it."""

    @property
    def closed(self) -> bool: ...
    def write(self, text: str, /) -> int: ...
    def flush(self) -> None: ...
    def isatty(self) -> bool: ...


class Display(ABC):
    """Shows a run while it happens. Leaving its context, also by an exception, restores the terminal."""

    def __enter__(self) -> "Display":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    @abstractmethod
    def begin(self, title: str, steps: int, done: int) -> None:
        """A run of `steps` steps starts, `done` of which an earlier process has finished; 0 steps: no training."""

    @abstractmethod
    def phase(self, text: str, total: int) -> None:
        """A stretch of work starts; each tally is one of its `total` parts. 0: it has none to count."""

    @abstractmethod
    def tally(self, tally: Tally, correct: bool | None) -> None:
        """A problem was voted on; `correct` compares its label with gold, None where gold is unknown."""

    @abstractmethod
    def step(self, report: StepReport) -> None:
        """A step, counted from 1, is finished. One up to `done` is history that was shown before: it only
        fills the curves."""

    @abstractmethod
    def notice(self, text: str) -> None:
        """Something to be read once, which stays on the screen."""


class Quiet(Display):
    """Shows nothing."""

    def begin(self, title: str, steps: int, done: int) -> None:
        pass

    def phase(self, text: str, total: int) -> None:
        pass

    def tally(self, tally: Tally, correct: bool | None) -> None:
        pass

    def step(self, report: StepReport) -> None:
        pass

    def notice(self, text: str) -> None:
        pass


class Lines(Display):
    """One plain line per step, for logs: no escape sequences, flushed at once."""

    def __init__(self, stream: Stream) -> None:
        self._stream = _Deafened(stream)
        self._steps = self._done_before = 0

    def begin(self, title: str, steps: int, done: int) -> None:
        self._steps, self._done_before = steps, done
        parts = [f"{steps} steps"] * bool(steps) + [f"{done} done"] * bool(done)
        self._write("  ".join([safe(title, NOTICE), *parts]))

    def phase(self, text: str, total: int) -> None:
        pass

    def tally(self, tally: Tally, correct: bool | None) -> None:
        pass

    def step(self, report: StepReport) -> None:
        if report.step <= self._done_before:
            return
        metrics = report.metrics
        fields = [f"step {report.step}/{self._steps}"]
        for name, key in LINE.items():
            value = metrics.get(key)
            if value is not None or name not in NEEDS_GOLD:
                fields.append(f"{name} {number(value)}")
        if (seconds := metrics.get("time/step")) is not None:
            fields.append(f"{seconds:.1f} s")
        if (speed := metrics.get("time/tokens_per_s")) is not None:
            fields.append(f"{number(speed)} tok/s")
        self._write("  ".join(fields))
        if warning := _warning(report):
            self._write(f"warning: {warning}")

    def notice(self, text: str) -> None:
        self._write(safe(text, NOTICE))

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


@dataclass(frozen=True, slots=True)
class _Row:
    """What the table keeps of a tally, so that the rollouts can be freed."""

    problem: str
    agreement: float
    margin: float
    label: str | None
    correct: bool | None


@dataclass(slots=True)
class _Curve:
    first: float | int
    points: deque[Figure]


class Live(Display):
    """Progress, curves and the votes of the current step, drawn in place four times a second at most.

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
        self._started = self._step_ended = clock()
        self._phase = ""
        self._phase_total = self._count = 0
        self._phase_started = self._started
        self._rows: list[_Row] = []
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

    def begin(self, title: str, steps: int, done: int) -> None:
        with self._lock:
            self._title = safe(title, NOTICE)
            self._steps, self._done, self._done_before = steps, done, done
            self._started = self._step_ended = self._clock()

    def phase(self, text: str, total: int) -> None:
        with self._lock:
            self._phase, self._phase_total, self._count = safe(text), total, 0
            self._phase_started = self._clock()
            if total:
                self._close_table()

    def tally(self, tally: Tally, correct: bool | None) -> None:
        # Cut here, so that a row never holds a megabyte that a model wrote.
        label = None if tally.label is None else safe(tally.label)
        row = _Row(safe(tally.group.problem.id), tally.agreement, tally.margin, label, correct)
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
            self._done, self._step_ended = max(self._done, report.step), self._clock()
            self._close_table()
            for name, key in CURVES.items():
                self._extend(name, report.metrics.get(key))
        if report.step > self._done_before and (warning := _warning(report)):
            self._console.print(Text(f"warning: {warning}", style="yellow"))

    def notice(self, text: str) -> None:
        self._console.print(Text(safe(text, NOTICE)))

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
            Text(self._title, style="bold", no_wrap=True, overflow="ellipsis"),
            self._progress(width),
        ]
        left = height - 1 - bool(self._steps) - bool(self._phase)
        curves = min(len(self._curves), max(0, left // 2 - 1))
        if curves:
            parts += [Text(), self._curve_table(width, curves)]
            left -= curves + 1
        if self._rows and left > 3:
            parts += [Text(), self._vote_table(width, left - 2)]
        return Group(*parts)

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
            if self._phase_total:
                share: RenderableType = _progress_bar(self._phase_total, self._count)
                spent = f"{self._count}/{self._phase_total}"
            else:
                share, spent = Text(), clock_time(now - self._phase_started)
            bars.add_row(Text(self._phase, style="dim"), share, Text(spent))
        return bars

    def _times(self, now: float, width: int) -> str:
        elapsed = clock_time(now - self._started)
        steps = self._done - self._done_before
        if steps < 1 or self._done >= self._steps:
            return elapsed
        pace = (self._step_ended - self._started) / steps
        left = clock_time(max(0.0, pace * (self._steps - self._done) - (now - self._step_ended)))
        return f"{elapsed}, {left} left" if width >= WIDE else f"{left} left"

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
            table.add_row(*cells, _mark(row.correct), _answer(row.label), style="" if current else "dim")
        if hidden := total - shown:
            return Group(table, Text(f"… and {hidden} more", style="dim"))
        return table


def open_display(quiet: bool, stream: Stream | None) -> Display:
    """`Quiet` if asked for or without a stream, `Live` on a terminal that can draw it, else `Lines`."""
    if quiet or stream is None:
        return Quiet()
    console = console_on(stream)
    # isatty beside is_interactive: FORCE_COLOR makes rich take any file for a terminal.
    draws = _Deafened(stream).isatty() and console.is_interactive and console.encoding.lower().startswith("utf")
    return Live(console) if draws else Lines(stream)


def console_on(stream: Stream) -> Console:
    """A console that takes no text for markup, and for which a reader that went away is no error."""
    return Console(file=cast(TextIO, _Deafened(stream)), markup=False, emoji=False, highlight=False)


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
        table.add_row(Text(safe(str(state["id"]))), *figures, _mark(state.get("correct")), _answer(state["label"]))
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
    return Group(table, *(outcomes_line(row["labels"]) for row in rows if row.get("labels")))


def outcomes_line(outcomes: Mapping[str, int]) -> RenderableType:
    """What became of the labels, as `ttrl_pop.report.measures.outcome_table` counts it."""
    return Text(f"labels: {', '.join(f'{name} {count}' for name, count in outcomes.items())}")


def safe(text: str, limit: int = 60) -> str:
    """`text` as at most `limit` printable characters on one line.

    Control characters become their pictures (ESC is ␛, a line feed ␊). Other characters that are invisible
    or change how their neighbours look (C1 controls, bidi marks, zero-width characters, variation selectors,
    line separators, lone surrogates) become �. A text that was shortened ends in …
    """
    head = "".join(map(_visible, text[:limit]))
    return head if len(text) <= limit else head[: limit - 1] + "…"


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


class _ByWidth:
    """A renderable that is built for the width that it gets."""

    def __init__(self, build: Callable[[int], RenderableType]) -> None:
        self._build = build

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield self._build(options.max_width)


class _Deafened:
    """A text stream for which a reader that went away is no error: from then on it drops what it is given."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._open = True
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding)))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def isatty(self) -> bool:
        return not self._stream.closed and self._stream.isatty()

    def _try(self, action: Callable[[], object]) -> None:
        if not self._open or self._stream.closed:
            return
        try:
            action()
        except OSError:
            self._open = False


def _visible(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    hidden = unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
    selector = 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF
    return "�" if hidden or selector else character


def _warning(report: StepReport) -> str | None:
    if report.alarm:
        return f"step {report.step} looks like a collapse: {safe(report.alarm, NOTICE)}"
    bad = report.metrics.get("learn/bad_updates")
    if not bad:
        return None
    return f"step {report.step}: updates skipped for a loss or gradient that was not finite: {bad:.0f}"


def _progress_bar(total: int, completed: int) -> ProgressBar:
    # rich's own track is dark grey, which on a light terminal outshines the bar.
    return ProgressBar(total, completed, style="dim", complete_style="cyan", finished_style="cyan")


def _mark(correct: bool | None) -> Text:
    if correct is None:
        return Text(" ")
    return Text("✓", style="green") if correct else Text("✗", style="red")


def _answer(answer: str | None) -> Text:
    """Cut by its cell, so that its column, alone in being allowed to wrap, gives way in a narrow table."""
    text = Text("no answer", style="dim italic") if answer is None else Text(safe(answer))
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


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
        table.add_row(*cells, _mark(answer.get("correct")), _answer(None if given is None else str(given)))
    return table
