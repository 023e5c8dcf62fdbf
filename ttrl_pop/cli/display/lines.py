"""The display for logs: one plain line a step."""

from ttrl_pop.cli.display.base import Display
from ttrl_pop.cli.display.console import Deafened, TextStream
from ttrl_pop.cli.display.marks import NOTICE, number, warning_of
from ttrl_pop.text import safe
from ttrl_pop.types import StepReport

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
    """One plain line per step as well, for logs: no escape sequences."""

    def __init__(self, stream: TextStream) -> None:
        super().__init__(stream)
        self._steps = self._done_before = 0

    def begin(self, title: str, steps: int, done: int) -> None:
        self._steps, self._done_before = steps, done
        parts = [f"{steps} steps"] * bool(steps) + [f"{done} done"] * bool(done)
        self._write("  ".join([safe(title, NOTICE), *parts]))

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
        if warning := warning_of(report):
            self.warning(warning)
