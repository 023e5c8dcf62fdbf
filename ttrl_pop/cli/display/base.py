"""The interface of displays: what they are shown of a run while it happens."""

from types import TracebackType
from typing import TypeAlias

from ttrl_pop.sample.meter import Meter
from ttrl_pop.types import Load, StepReport, Tally, Work

NOTHING = Load()
"""The load of a command of which it is not known."""

Figure: TypeAlias = float | int | None
"""A number that may be unknown."""


class Display:
    """A display that shows nothing, for `--quiet`; others show what is told to them.

    Leaving its context, also by an exception, restores the terminal.
    """

    def __enter__(self) -> "Display":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def begin(self, title: str, steps: int, done: int, load: Load = NOTHING, meter: Meter | None = None) -> None:
        """A run of `steps` steps starts, `done` of which an earlier process has finished; 0 steps: no training.

        Args:
            load: what this process has to do.
            meter: counts what is written meanwhile.
        """

    def phase(self, text: str, rollouts: int = 0, work: Work | None = None) -> None:
        """A stretch of work starts, also before anything else is told.

        Args:
            rollouts: what it writes or learns from; 0: nothing to count.
            work: what of the load it is; None: something beside.
        """

    def tally(self, tally: Tally, correct: bool | None) -> None:
        """A problem was voted on; `correct` compares its label with gold, None where gold is unknown."""

    def step(self, report: StepReport) -> None:
        """A step, counted from 1, is finished. One up to `done` is history that was shown before: it only
        fills the curves."""

    def notice(self, text: str) -> None:
        """Something to be read once, which stays on the screen."""

    def warning(self, text: str) -> None:
        """A notice of what is likely wrong."""
        self.notice(f"warning: {text}")
