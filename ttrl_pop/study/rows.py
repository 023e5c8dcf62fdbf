"""Figures of all runs → rows: each arm by itself, then each beside the first, paired by seed and problem."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ttrl_pop.report.estimators import crossed_interval, mean
from ttrl_pop.report.gold import outcome_table
from ttrl_pop.study.figures import Figures

Results = Mapping[str, Sequence[Figures]]
"""Arm → the figures of each seed. The first arm is what the others are held up against."""


def study_rows(study: str, results: Results) -> Iterator[dict[str, Any]]:
    """Yield a row for each arm, then one for the difference of each to the first."""
    first, *others = results
    for arm, runs in results.items():
        yield {"study": study, "kind": "arm", "arm": arm, **_arm(runs)}
    for arm in others:
        yield {"study": study, "kind": "difference", "arm": arm, "to": first, **_over(results[arm], results[first])}


def _arm(runs: Sequence[Figures]) -> dict[str, Any]:
    outcomes = [outcome_table(run.before, run.after) for run in runs]
    total = {name: sum(outcome[name] for outcome in outcomes) for name in outcomes[0]}
    return {
        "seeds": len(runs),
        "problems": len(runs[0].per_problem),
        "rollouts": sum(run.rollouts for run in runs) / len(runs),
        "tokens": sum(run.tokens for run in runs) / len(runs),
        "entropy": mean([run.entropy for run in runs]),
        **({"labels": total} if any(total.values()) else {}),
        **_over(runs),
    }


def _over(runs: Sequence[Figures], minus: Sequence[Figures] | None = None) -> dict[str, Any]:
    """Each figure's mean over seeds and problems, and its interval; of `runs` less those of `minus`, where given."""
    values: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    names = dict.fromkeys(name for run in runs for row in run.per_problem.values() for name in row)
    for name in names:
        columns = [_column(problem, name, runs, minus) for problem in runs[0].per_problem]
        known = [column for column in columns if None not in column]
        if not known:
            continue
        table = np.array(known, dtype=np.float64).T
        values[name] = float(np.mean(table))
        if (found := crossed_interval(table)) is not None:
            values[name], *intervals[name] = found
    return {**values, "intervals": intervals}


def _column(problem: str, name: str, runs: Sequence[Figures], minus: Sequence[Figures] | None) -> list[float | None]:
    """A problem's figure at each seed; None where it is not known."""
    found = [run.per_problem[problem].get(name) for run in runs]
    if minus is None:
        return found
    before = [run.per_problem[problem].get(name) for run in minus]
    return [None if a is None or b is None else a - b for a, b in zip(found, before, strict=True)]
