"""Seconds of each part of a step, each second counted once."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Clock:
    """Seconds spent on each part of a step. Inside a part that runs within another only the inner one counts: votes are
    cast while the next rollouts are sampled, and what counts as voting is what is left to wait for after that."""

    def __init__(self) -> None:
        self.start = self._since = time.perf_counter()
        self.spent = {"time/sample": 0.0, "time/vote": 0.0, "time/learn": 0.0}
        self._running: list[str] = []

    @contextmanager
    def span(self, key: str) -> Iterator[None]:
        """Count the time inside as that of `key`."""
        self._settle()
        self._running.append(key)
        try:
            yield
        finally:
            self._settle()
            self._running.pop()

    def timed(self, key: str, items: Iterator[Any]) -> Iterator[Any]:
        """Pass `items` on, counting the time that making each takes."""
        while True:
            with self.span(key):
                item = next(items, None)
            if item is None:
                return
            yield item

    def times(self) -> dict[str, float]:
        """Seconds by part, and of the whole step so far."""
        return {**self.spent, "time/step": time.perf_counter() - self.start}

    def _settle(self) -> None:
        """Give the time since the last change to the innermost part."""
        now = time.perf_counter()
        if self._running:
            self.spent[self._running[-1]] += now - self._since
        self._since = now
