"""What the base model says to some of the problems, to fit a population on."""

from dataclasses import replace

from ttrl_pop.randomness import OUTSIDE_TRAINING
from ttrl_pop.run.session import Session
from ttrl_pop.types import Rollout

PROBLEMS = 16
"""Problems that are looked at, at most."""

LONGEST = 64
"""Completion tokens of each problem that are measured."""


def base_rollouts(session: Session) -> list[Rollout]:
    """One completion of the base model for each of up to `PROBLEMS` problems, evenly spaced over the input."""
    every = session.problems
    count = min(PROBLEMS, len(every))
    chosen = [every[i * len(every) // count] for i in range(count)]
    groups = list(session.sample(chosen, [None], 1, OUTSIDE_TRAINING, weights="base"))
    groups.sort(key=lambda group: group.problem.index)
    return [shortened(group.rollouts_G[0]) for group in groups]


def shortened(rollout: Rollout) -> Rollout:
    """The rollout up to its first `LONGEST` completion tokens."""
    return replace(rollout, completion_ids=rollout.completion_ids[:LONGEST], logprobs=rollout.logprobs[:LONGEST])
