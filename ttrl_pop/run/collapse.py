"""The collapse alarm: label-free figures of a run that rise and then fall (arXiv 2603.08660).

A reward that the model gives itself can be won by saying less, or by saying the same to everything. The alarm compares
the mean of the newest three steps with that of the first three. It goes off where

1. minds agree (0.95 or more) and completions have shrunk to less than half;
2. the policy's entropy has fallen below 0.02 nats per token and to less than a twentieth;
3. abstentions have risen by a quarter of all rollouts;
4. one answer is the label of six problems in ten or more, three in ten more than at first.

These bounds are choices of this project, well beyond what the demo's runs reach (dev/LOG.md).
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from ttrl_pop.types import Metrics

WINDOW = 3
"""Steps that are averaged."""


class Watch:
    """Sees every row of metrics.jsonl once, in order; keeps the first and the newest few."""

    def __init__(self) -> None:
        self._first: list[Metrics] = []
        self._newest: deque[Metrics] = deque(maxlen=WINDOW)

    def see(self, metrics: Metrics) -> str | None:
        """Take in the next step; returns why it looks like a collapse, or None.

        The first and the newest steps may not overlap, so nothing is said before step 2 · WINDOW.
        """
        self._newest.append(metrics)
        if len(self._first) < WINDOW:
            self._first.append(metrics)
            self._newest.clear()
        if len(self._newest) < WINDOW:
            return None
        first, now = _means(self._first), _means(self._newest)
        return next((text for rule in SIGNS if (text := rule(first, now))), None)


def _shrunk(first: Mapping[str, float], now: Mapping[str, float]) -> str | None:
    agreement, before, length = now["vote/agreement"], first["rollout/length"], now["rollout/length"]
    if agreement >= 0.95 and length < before / 2:
        return f"agreement {agreement:.2f} on completions of {length:.0f} tokens, {before:.0f} at the start"
    return None


def _certain(first: Mapping[str, float], now: Mapping[str, float]) -> str | None:
    before, entropy = first["rollout/entropy"], now["rollout/entropy"]
    if entropy < min(0.02, before / 20):
        return f"entropy {entropy:.2g} nats per token, {before:.2g} at the start"
    return None


def _silent(first: Mapping[str, float], now: Mapping[str, float]) -> str | None:
    before, abstained = first["vote/abstained"], now["vote/abstained"]
    if abstained >= before + 0.25:
        return f"{abstained:.0%} of rollouts without an answer, {before:.0%} at the start"
    return None


def _uniform(first: Mapping[str, float], now: Mapping[str, float]) -> str | None:
    before, share = first["vote/commonest_label"], now["vote/commonest_label"]
    if share >= max(0.6, before + 0.3):
        return f"one answer is the label of {share:.0%} of the problems, of {before:.0%} at the start"
    return None


SIGNS: tuple[Callable[[Mapping[str, float], Mapping[str, float]], str | None], ...] = (
    _shrunk,
    _certain,
    _silent,
    _uniform,
)


def _means(rows: Sequence[Metrics]) -> dict[str, float]:
    """Mean of each figure over the rows that have it; 0 where none has (an entropy of no tokens)."""
    keys = ("vote/agreement", "rollout/length", "rollout/entropy", "vote/abstained", "vote/commonest_label")
    columns = {key: [float(value) for row in rows if (value := row.get(key)) is not None] for key in keys}
    return {key: fmean(column) if column else 0.0 for key, column in columns.items()}
