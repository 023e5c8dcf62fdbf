"""What the base model says to some of the problems, to fit a population on."""

from collections.abc import Sequence
from dataclasses import replace

from ttrl_pop.config import SamplingConfig
from ttrl_pop.randomness import OUTSIDE_TRAINING
from ttrl_pop.ranks.ranks import ALONE
from ttrl_pop.run.session import Session
from ttrl_pop.types import Group, Problem, Rollout

PROBLEMS = 16
"""Problems that are looked at, at most."""

LONGEST = 64
"""Completion tokens of each problem that are measured."""


def looked_at(problems: Sequence[Problem], most: int = PROBLEMS) -> list[Problem]:
    """Up to `most` of the problems, evenly spaced."""
    count = min(most, len(problems))
    return [problems[i * len(problems) // count] for i in range(count)]


def base_rollouts(session: Session, problems: Sequence[Problem]) -> list[Rollout]:
    """One completion of the base model for each of the problems, in the order of the input; no longer than is measured.

    A completion that goes on begins with the same tokens.
    """
    sampling = session.config.sampling
    limited = sampling.model_copy(update={"max_new_tokens": min(LONGEST, sampling.max_new_tokens)})
    return [shortened(group.rollouts_G[0]) for group in base_groups(session, problems, 1, limited)]


def base_groups(
    session: Session, problems: Sequence[Problem], samples: int, sampling: SamplingConfig, purpose: str = "token"
) -> list[Group]:
    """Completions of the base model for each of the problems, in the order of the input, sampled as `sampling` says."""
    engine = session.backend.with_sampling(sampling)
    # The first of several processes does it alone, and gives the others what comes of it.
    own = replace(session, backend=engine, ranks=ALONE)
    drawn = own.sample(problems, [None], samples, OUTSIDE_TRAINING, purpose=purpose, weights="base")
    return sorted(drawn, key=lambda group: group.problem.index)


def shortened(rollout: Rollout) -> Rollout:
    """The rollout up to its first `LONGEST` completion tokens."""
    return replace(rollout, completion_ids=rollout.completion_ids[:LONGEST], logprobs=rollout.logprobs[:LONGEST])
