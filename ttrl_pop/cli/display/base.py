"""The interface of displays: what they are shown of a run while it happens."""

from types import TracebackType
from typing import TypeAlias

from ttrl_pop.types import StepReport, Tally

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

    def begin(self, title: str, steps: int, done: int) -> None:
        """A run of `steps` steps starts, `done` of which an earlier process has finished; 0 steps: no training."""

    def phase(self, text: str, total: int) -> None:
        """A stretch of work starts; each tally is one of its `total` parts. 0: it has none to count."""

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
