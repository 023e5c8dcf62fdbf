"""What the base model says to some of the problems, to fit a population on."""

from ttrl_pop.randomness import OUTSIDE_TRAINING
from ttrl_pop.run.session import Session
from ttrl_pop.types import Rollout

PROBLEMS = 16

LONGEST = 64
"""Completion tokens of each problem that are measured."""


def base_rollouts(session: Session) -> list[Rollout]:
    """One completion of the base model for each of up to `PROBLEMS` problems, evenly spaced over the input."""
    every = session.problems
    count = min(PROBLEMS, len(every))
    chosen = [every[i * len(every) // count] for i in range(count)]
    with session.policy.as_base():
        groups = list(session.sample(chosen, [None], 1, OUTSIDE_TRAINING))
    groups.sort(key=lambda group: group.problem.index)
    return [shortened(group.rollouts_G[0]) for group in groups]


def shortened(rollout: Rollout) -> Rollout:
    return Rollout(
        rollout.mind,
        rollout.prompt_ids,
        rollout.completion_ids[:LONGEST],
        rollout.logprobs[:LONGEST],
        rollout.text,
        rollout.finish_reason,
        rollout.policy_version,
    )
