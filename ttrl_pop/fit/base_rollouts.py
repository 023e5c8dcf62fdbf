"""What the base model says to some of the problems, to fit a population on."""

from collections.abc import Sequence
from dataclasses import replace

from ttrl_pop.randomness import OUTSIDE_TRAINING
from ttrl_pop.run.session import Session
from ttrl_pop.types import Problem, Rollout

PROBLEMS = 16
"""Problems that are looked at, at most."""

LONGEST = 64
"""Completion tokens of each problem that are measured."""


def looked_at(problems: Sequence[Problem]) -> list[Problem]:
    """Up to `PROBLEMS` of the problems, evenly spaced."""
    count = min(PROBLEMS, len(problems))
    return [problems[i * len(problems) // count] for i in range(count)]


def base_rollouts(session: Session, problems: Sequence[Problem]) -> list[Rollout]:
    """One completion of the base model for each of the problems, in the order of the input; no longer than is measured.

    A completion that goes on begins with the same tokens.
    """
    sampling = session.config.sampling
    limit = min(LONGEST, sampling.max_new_tokens)
    engine = session.backend.with_sampling(sampling.model_copy(update={"max_new_tokens": limit}))
    groups = list(replace(session, backend=engine).sample(problems, [None], 1, OUTSIDE_TRAINING, weights="base"))
    groups.sort(key=lambda group: group.problem.index)
    return [shortened(group.rollouts_G[0]) for group in groups]


def shortened(rollout: Rollout) -> Rollout:
    """The rollout up to its first `LONGEST` completion tokens."""
    return replace(rollout, completion_ids=rollout.completion_ids[:LONGEST], logprobs=rollout.logprobs[:LONGEST])
