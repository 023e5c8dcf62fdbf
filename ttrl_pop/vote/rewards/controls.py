"""Controls: rewards that cannot teach an answer. What a run gains under one of them was not gained by its votes.

`format` alone (`ttrl_pop.vote.rewards.consensus.form`) is a third control: it pays for an answer, whichever it is.

Chance is drawn from a stream that is keyed by the problem and by what the whole group says, so that a resumed run draws
the same, and no rollout's pay depends on its own answer alone.
"""

import numpy as np

from ttrl_pop import randomness
from ttrl_pop.vote.rewards.base import Ballot
from ttrl_pop.vote.rewards.consensus import majority


def coin(ballot: Ballot) -> tuple[float, ...]:
    """1 or 0 for each rollout, with equal chances, whatever it says (the random reward of arXiv 2506.10947)."""
    return tuple(map(float, _chance("coin", ballot).integers(2, size=len(ballot.answers_G))))


def shuffled(ballot: Ballot) -> tuple[float, ...]:
    """The majority's rewards, dealt out anew among the rollouts of the group: as many are paid, at random."""
    return tuple(map(float, _chance("shuffled", ballot).permutation(majority(ballot))))


def _chance(name: str, ballot: Ballot) -> np.random.Generator:
    return randomness.stream(name, ballot.problem_id, *ballot.texts_G)
