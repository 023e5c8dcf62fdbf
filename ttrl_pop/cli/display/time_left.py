"""Time left: what is still to write and to learn from, at the pace of what was."""

from collections.abc import Callable
from dataclasses import dataclass

from ttrl_pop.sample.meter import Meter
from ttrl_pop.types import Load, StepReport, Work

MEMORY = 0.5
"""Weight of all earlier stretches beside the newest: completions grow longer or shorter while a run learns."""

ALMOST = 0.99
"""Largest share of a stretch that counts as done while it lasts."""

ENOUGH = 0.25
"""Share of a stretch of a new kind from which its own pace is taken: the first rollouts that end tell little."""

FALLS = 0.8
"""What a step learns from beside the step before, as long as nothing is known of it; then one step among the others. In
runs of the demo it was 0.7 where minds learned to agree, and 1 where a coin paid (dev/LOG.md)."""

WRITING: tuple[Work, ...] = ("survey", "sample")
"""Kinds of work at which rollouts are written: what is not known of one is taken from the other."""


@dataclass(slots=True)
class _Pace:
    """Seconds that some rollouts took."""

    seconds: float = 0.0
    rollouts: float = 0.0

    def see(self, seconds: float | int, rollouts: float | int) -> None:
        """Take in a stretch."""
        if rollouts:
            self.seconds = MEMORY * self.seconds + seconds
            self.rollouts = MEMORY * self.rollouts + rollouts

    @property
    def each(self) -> float | None:
        """Seconds of a rollout; None where none is known."""
        return self.seconds / self.rollouts if self.rollouts else None


@dataclass(frozen=True, slots=True)
class Left:
    """Seconds that a command goes on."""

    seconds: float
    at_least: bool
    """Whether there is work beside, of which nothing is known yet."""


class TimeLeft:
    """An estimate of how long a command goes on: each rollout that it has yet to write, or to learn from, takes as long
    as those before. Before any is done, nothing is known.

    Minds that learn agree more and more, and groups that agree teach nothing: the number of rollouts that a step learns
    from goes on to fall as it has fallen so far, and at first by a fifth.
    """

    def __init__(self, load: Load, meter: Meter, clock: Callable[[], float]) -> None:
        self._meter = meter
        self._clock = clock
        self._ahead: dict[Work, int] = {"survey": load.survey, "sample": load.sample}
        self._steps = load.steps
        self._learned: list[int] = []
        """Rollouts that each step has learned from."""
        self._paces: dict[Work, _Pace] = {"survey": _Pace(), "sample": _Pace(), "learn": _Pace()}
        self._length = _Pace()
        self._work: Work | None = None
        self._rollouts = 0
        self._started = clock()
        self._written = self._tokens = 0

    @property
    def done(self) -> int:
        """Rollouts of the present stretch that are written."""
        return min(self._meter.rollouts - self._written, self._rollouts)

    @property
    def tokens(self) -> int:
        """Tokens that the present stretch has written."""
        return self._meter.tokens - self._tokens

    @property
    def elapsed(self) -> float:
        """Seconds since the present stretch began."""
        return self._clock() - self._started

    def recall(self, report: StepReport) -> None:
        """Take in the times of a step that an earlier process has done."""
        figures = {key: report.metrics.get(key) or 0 for key in ("time/sample", "time/vote", "time/learn")}
        rollouts = report.metrics.get("rollout/count") or 0
        self._paces["sample"].see(figures["time/sample"] + figures["time/vote"], rollouts)
        used, left_out = (report.metrics.get(f"learn/groups_{name}") or 0 for name in ("used", "skipped"))
        self._learned.append(round(rollouts * used / (used + left_out)) if used else 0)
        self._paces["learn"].see(figures["time/learn"], self._learned[-1])

    def begin(self, work: Work | None, rollouts: int) -> None:
        """A stretch of `rollouts` rollouts begins, and the one before is over."""
        self.end()
        self._work, self._rollouts, self._started = work, rollouts, self._clock()
        self._written, self._tokens = self._meter.rollouts, self._meter.tokens
        if work == "learn":
            self._learned.append(rollouts)
            self._steps -= 1
        elif work is not None:
            self._ahead[work] = max(0, self._ahead[work] - rollouts)

    def end(self) -> None:
        """The present stretch is over."""
        if self._work is not None:
            self._paces[self._work].see(self.elapsed, self._rollouts)
            if self._work in WRITING:
                self._length.see(self.tokens, self._meter.rollouts - self._written)
        self._work = None

    def left(self) -> Left | None:
        """Time left by now; None where nothing is known, or nothing left."""
        share = self._share()
        todo: dict[Work, float] = {**self._ahead, "learn": self._to_learn()}
        at_least = self._steps > 0 and not self._learned
        if self._work is not None:
            todo[self._work] += self._rollouts * (1 - share)
        seconds = 0.0
        for work, rollouts in todo.items():
            if (each := self._each(work, share)) is not None:
                seconds += rollouts * each
            elif rollouts:
                at_least = True
        return Left(seconds, at_least) if seconds else None

    def _to_learn(self) -> float:
        """Rollouts that the steps ahead will learn from."""
        if not self._learned:
            return 0.0
        first, last, before = self._learned[0], self._learned[-1], len(self._learned) - 1
        falls = min(1.0, (FALLS * last / first) ** (1 / (1 + before))) if first else FALLS
        # last · (falls + falls² + …), one for each step
        return last * (float(self._steps) if falls == 1 else falls * (1 - falls**self._steps) / (1 - falls))

    def _share(self) -> float:
        """How much of the present stretch is done."""
        if self._work is None or not self._rollouts:
            return 0.0
        if self._work not in WRITING:
            each = self._paces[self._work].each
            return min(ALMOST, self.elapsed / (each * self._rollouts)) if each else 0.0
        finished = self.done / self._rollouts
        # Where all are written side by side they end late and together, but their tokens come evenly.
        tokens = self.tokens / (self._length.each * self._rollouts) if self._length.each else 0.0
        return min(ALMOST, max(finished, tokens))

    def _each(self, work: Work, share: float) -> float | None:
        """Seconds of a rollout of this work."""
        if (each := self._paces[work].each) is not None or work not in WRITING:
            return each
        if self._work in WRITING and share > ENOUGH:
            return self.elapsed / (share * self._rollouts)
        return next((pace.each for kind in WRITING if (pace := self._paces[kind]).each is not None), None)
