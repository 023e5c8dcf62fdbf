"""Seconds of each part of a step."""

import time
from collections.abc import Iterator
from typing import Any


class Clock:
    """Seconds spent on each part of a step."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.spent = {"time/sample": 0.0, "time/vote": 0.0, "time/learn": 0.0}

    def span(self, key: str) -> "Span":
        """A context whose time counts for the part `key`."""
        return Span(self.spent, key)

    def timed(self, key: str, items: Iterator[Any]) -> Iterator[Any]:
        """Pass `items` on, counting the time that making each takes."""
        while True:
            with self.span(key):
                item = next(items, None)
            if item is None:
                return
            yield item

    def times(self) -> dict[str, float]:
        """Seconds of each part and of the whole step so far."""
        # Votes are cast while the next rollouts are sampled: their time is what is left to wait for after that.
        spent = self.spent | {"time/vote": self.spent["time/vote"] - self.spent["time/sample"]}
        return {**spent, "time/step": time.perf_counter() - self.start}


class Span:
    """A stretch of time that is added to one part of a step."""

    def __init__(self, spent: dict[str, float], key: str) -> None:
        self.spent, self.key = spent, key

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.spent[self.key] += time.perf_counter() - self.start
