"""TTRL-Guard (arXiv 2605.19444), by the rule of its released code: teaching less where a label is in doubt.

Three ways, each a setting of its own. A visit's flip is that its label differs from the one before; a problem is
contested once it has flipped.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from ttrl_pop.config import GuardConfig
from ttrl_pop.randomness import stream
from ttrl_pop.run.history import WINDOW, History, ProblemState
from ttrl_pop.types import Tally

FLIPPED, CERTAIN, STABLE = 0.5, 0.7, 0.85
"""Factors: the label flipped; it flipped, and most minds agree on the new one; it never flipped and most agree."""

AGREED = 0.6
"""Agreement above which minds that agree are in doubt."""

RISKY = 0.7
"""Agreement above which a contested problem is at risk."""

SKIP = 0.7
"""Probability with which a problem at risk is left out."""

MOST_SKIPPED = 0.25
"""Share of a step's problems that are left out, at most, but one of them always may be."""

BONUS = 0.3
"""What all minorities of a group get together, in mean sizes of its advantages."""

SILENT = 0.05
"""What an abstention gets of a minority's mean bonus."""


def flip_scale(state: ProblemState) -> float:
    """Factor on the advantages of a problem whose newest visit `state` counts (flip-rate-aware reward scaling)."""
    if state.recent & 1:
        return FLIPPED * (CERTAIN if state.agreement > AGREED else 1.0)
    return STABLE if state.is_suspect and state.suspected <= WINDOW else 1.0


def skipped(states: Sequence[ProblemState], seed: int, step: int) -> set[str]:
    """Problems of a step that are left out at random because their label was contested and is locked in again
    (risk-conditioned sparse updating): up to the most that may be, those with the smallest numbers, wherever they stand
    in the input."""
    drawn = {
        state.id: stream("skip", seed, step, state.id).random()
        for state in states
        if state.flips and state.visits >= WINDOW and fmean(state.window) > RISKY
    }
    smallest = sorted(drawn, key=drawn.__getitem__)[: max(1, math.floor(MOST_SKIPPED * len(states)))]
    return {problem_id for problem_id in smallest if drawn[problem_id] < SKIP}


def weights(history: History, problem_ids: Sequence[str], guard: GuardConfig, seed: int, step: int) -> dict[str, float]:
    """Factor on the advantages of each problem of a step; 0 where it is left out."""
    states = [history[problem_id] for problem_id in problem_ids]
    out = skipped(states, seed, step) if guard.skip_risky else set()
    return {state.id: 0.0 if state.id in out else flip_scale(state) if guard.flip_scaling else 1.0 for state in states}


def bonuses(tallies: Sequence[Tally], history: History, guard: GuardConfig) -> Mapping[str, tuple[float, ...]]:
    """What is added to the advantage of each rollout, in mean sizes of its group's advantages, by problem id: where a
    label has just flipped, to answers of a quarter of the votes or more that are not the label (minority-preserving
    sampling)."""
    if not guard.keep_minorities:
        return {}
    flipped = [tally for tally in tallies if history[tally.group.problem.id].recent & 1]
    return {tally.group.problem.id: found for tally in flipped if any(found := _bonus(tally))}


def _bonus(tally: Tally) -> tuple[float, ...]:
    size = len(tally.answers_G)
    minorities = [
        cluster.members
        for number, cluster in enumerate(tally.clusters)
        if number != tally.label_cluster and len(cluster.members) >= max(1, size // 4)
    ]
    votes = sum(map(len, minorities))
    given = [SILENT * BONUS / len(minorities) if answer is None and minorities else 0.0 for answer in tally.answers_G]
    for members in minorities:
        for member in members:
            given[member] = BONUS * len(members) / votes
    return tuple(given)
