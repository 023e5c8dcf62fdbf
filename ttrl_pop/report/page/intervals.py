"""95 % intervals of a step's figures over the problems of the step, by the bootstrap of evaluations.

They say how far a figure would move with other problems of the same kind, not with other draws of the same.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ttrl_pop.report.estimators import bootstrap_interval, mean
from ttrl_pop.report.page.record import Interval, Visit

ROUNDING = 1e-6

FIGURES: dict[str, Callable[[Visit], float | None]] = {
    "vote/agreement": lambda visit: visit.agreement,
    "vote/margin": lambda visit: visit.margin,
    "vote/abstained": lambda visit: visit.abstained / (visit.abstained + sum(votes for _, votes in visit.votes)),
    "vote/label_accuracy": lambda visit: None if visit.right is None else float(visit.right),
    "rollout/accuracy": lambda visit: visit.accuracy,
}
"""Figure of metrics.jsonl → its part of one problem."""


def step_intervals(visits: Sequence[Visit], metrics: Mapping[str, Any], seed: int) -> dict[str, Interval]:
    """The interval of each figure that is the mean of its parts.

    One that is not, say because others elected the labels, gets none: the interval would be of something else.
    """
    found: dict[str, Interval] = {}
    for figure, part in FIGURES.items():
        parts = [part(visit) for visit in visits]
        told, counted = metrics.get(figure), mean(parts)
        if isinstance(told, int | float) and counted is not None and abs(told - counted) < ROUNDING:
            interval = bootstrap_interval(parts, seed)
            if interval is not None:
                found[figure] = interval
    return found
