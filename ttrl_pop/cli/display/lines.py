"""The display for logs: one plain line a step, and one where nothing was said for long."""

import threading
import time
from collections.abc import Callable
from types import TracebackType

from ttrl_pop.cli.display.base import NOTHING, Display
from ttrl_pop.cli.display.console import Deafened, TextStream
from ttrl_pop.cli.display.marks import NOTICE, clock_time, number, time_left, warning_of
from ttrl_pop.cli.display.time_left import TimeLeft
from ttrl_pop.sample.meter import Meter
from ttrl_pop.text import safe
from ttrl_pop.types import Load, StepReport, Work

SILENCE = 50.0
"""Seconds without a line after which one says how far it is: no minute passes without a sign of life."""

SIGNS = "signs of life"
"""Name of the thread that gives them."""

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
"""Name in a line → metric, in their order."""

NEEDS_GOLD = {"accuracy", "label_accuracy"}
"""Left out where gold is unknown; any other figure that is None is a dash."""


class Notices(Display):
    """What must be read, and nothing of how far it is: one plain line each, flushed at once."""

    def __init__(self, stream: TextStream) -> None:
        self._stream = Deafened(stream)

    def notice(self, text: str) -> None:
        self._write(safe(text, NOTICE))

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class Lines(Notices):
    """One plain line per step as well, for logs, and signs of life between them: no escape sequences."""

    def __init__(self, stream: TextStream, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        # The thread that gives signs of life reads what the run changes. Reentrant: a signal handler may give notice.
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._signs = threading.Thread(target=self._give_signs, name=SIGNS, daemon=True)
        self._steps = self._done_before = 0
        self._phase, self._rollouts = "", 0
        self._time_left = TimeLeft(NOTHING, Meter(), clock)
        self._last_line = clock()

    def __enter__(self) -> "Display":
        self._signs.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._signs.join()

    def begin(self, title: str, steps: int, done: int, load: Load = NOTHING, meter: Meter | None = None) -> None:
        with self._lock:
            self._steps, self._done_before = steps, done
            self._phase, self._rollouts = "", 0
            self._time_left = TimeLeft(load, meter or Meter(), self._clock)
        parts = [f"{steps} steps"] * bool(steps) + [f"{done} done"] * bool(done)
        self._write("  ".join([safe(title, NOTICE), *parts]))

    def phase(self, text: str, rollouts: int = 0, work: Work | None = None) -> None:
        with self._lock:
            self._phase, self._rollouts = safe(text), rollouts if work != "learn" else 0
            self._time_left.begin(work, rollouts)

    def sign_of_life(self) -> float:
        """Say how far it is, where nothing was said for long; the seconds until that is to be asked again."""
        with self._lock:
            quiet = self._clock() - self._last_line
            if quiet < SILENCE:
                return SILENCE - quiet
            parts = [self._phase or "at work", clock_time(self._time_left.elapsed)]
            if self._rollouts:
                parts.insert(1, f"{self._time_left.done}/{self._rollouts} rollouts")
            if tokens := self._time_left.tokens:
                parts.insert(2, f"{tokens} tokens")
            line = "  ".join([*parts, *time_left(self._time_left.left())])
        self._write(line)
        return SILENCE

    def step(self, report: StepReport) -> None:
        with self._lock:
            if report.step <= self._done_before:
                self._time_left.recall(report)
                return
            self._time_left.end()
            left = time_left(self._time_left.left())
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
        fields += left
        self._write("  ".join(fields))
        if warning := warning_of(report):
            self.warning(warning)

    def _write(self, line: str) -> None:
        with self._lock:
            self._last_line = self._clock()
            super()._write(line)

    def _give_signs(self) -> None:
        while not self._ended.wait(self.sign_of_life()):
            pass
