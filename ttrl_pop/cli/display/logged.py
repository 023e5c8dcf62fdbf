"""A display that keeps in the run's log what it is told to be read."""

from ttrl_pop.cli.display.base import NOTHING, Display
from ttrl_pop.cli.display.marks import warning_of
from ttrl_pop.sample.meter import Meter
from ttrl_pop.store.log import Level, Log
from ttrl_pop.types import Load, StepReport, Tally, Work


class Logged(Display):
    """Another display, which shows, and a log, which keeps notices and warnings whether they are shown or not."""

    def __init__(self, shown: Display, log: Log) -> None:
        self._shown = shown
        self._log = log
        self._done_before = 0
        self._has_failed = False

    def begin(self, title: str, steps: int, done: int, load: Load = NOTHING, meter: Meter | None = None) -> None:
        self._done_before = done
        self._shown.begin(title, steps, done, load, meter)

    def phase(self, text: str, rollouts: int = 0, work: Work | None = None) -> None:
        self._shown.phase(text, rollouts, work)

    def tally(self, tally: Tally, correct: bool | None) -> None:
        self._shown.tally(tally, correct)

    def step(self, report: StepReport) -> None:
        self._shown.step(report)
        if report.step > self._done_before and (warning := warning_of(report)):
            self.keep("warning", warning)

    def notice(self, text: str) -> None:
        self._shown.notice(text)
        self.keep("notice", text)

    def warning(self, text: str) -> None:
        self._shown.warning(text)
        self.keep("warning", text)

    def keep(self, level: Level, text: str) -> None:
        """Write into the log alone. That it cannot be written is said once; where the disk is full, what the run cannot
        do without will say so."""
        if (found := self._log.write(level, text)) and not self._has_failed:
            self._has_failed = True
            self._shown.notice(f"{self._log.path}: cannot be written ({found}); the run goes on without its log")
