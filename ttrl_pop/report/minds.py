"""What a mind decides: how far answers of one mind agree more than answers of two, by formulas that need no gold.

Populations become comparable by it: without noise the two agreements are equal, at any temperature.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from ttrl_pop.types import Tally

ABSTAINED = -1
"""Stands for no answer where answers are counted."""

PERMUTATIONS = 200
"""Draws of the null: some seconds for hundreds of problems."""


class Agreement(NamedTuple):
    """Share of pairs of rollouts with one answer; None where there is no such pair."""

    same: float | None
    """Among pairs of one mind."""
    other: float | None
    """Among pairs of two minds."""


class Information(NamedTuple):
    """How much of the answer the mind tells, over several problems."""

    bits: float
    """Mean over problems."""
    null: float
    """What is found on average where minds are dealt to the answers of each problem by chance."""
    p: float
    """Share of such deals that tell as much; never 0, as the deal that was found is one of them."""


def agreement(tally: Tally) -> Agreement:
    """How often two rollouts of a problem give one answer. An abstention agrees with nothing."""
    answers, minds = answers_of(tally), minds_of(tally)
    answered = [(answer, mind) for answer, mind in zip(answers, minds, strict=True) if answer != ABSTAINED]
    same, every = _pairs(minds), math.comb(len(answers), 2)
    same_equal, equal = _pairs(answered), _pairs([answer for answer, _ in answered])
    return Agreement(
        same_equal / same if same else None,
        (equal - same_equal) / (every - same) if every > same else None,
    )


def _pairs(values: Sequence[Hashable]) -> int:
    """Pairs of equal values."""
    return sum(math.comb(count, 2) for count in Counter(values).values())


def information(tallies: Sequence[Tally], seed: int, permutations: int = PERMUTATIONS) -> Information:
    """Mutual information of mind and answer within a problem, and a permutation test of it; `seed` keys the test."""
    random = np.random.default_rng(seed)
    rows = [(answers_of(tally), minds_of(tally)) for tally in tallies]
    bits = math.fsum(mutual_information(answers, minds) for answers, minds in rows) / len(rows)
    nulls = [
        math.fsum(mutual_information(random.permutation(answers).tolist(), minds) for answers, minds in rows)
        / len(rows)
        for _ in range(permutations)
    ]
    # Sums of the same terms in another order differ by rounding.
    reached = sum(null >= bits - 1e-12 for null in nulls)
    return Information(bits, math.fsum(nulls) / len(nulls), (1 + reached) / (1 + permutations))


def mutual_information(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """I(A; B) = H(A) + H(B) − H(A, B) in bits, each entropy with the correction of Miller and Madow."""
    return entropy(a) + entropy(b) - entropy([*zip(a, b, strict=True)])


def entropy(values: Sequence[Hashable]) -> float:
    """Entropy of a sample in bits: that of its shares, and (values that occur − 1) / 2n nats (Miller 1955)."""
    shares = [count / len(values) for count in Counter(values).values()]
    return (-math.fsum(p * math.log(p) for p in shares) + (len(shares) - 1) / (2 * len(values))) / math.log(2)


def answers_of(tally: Tally) -> list[int]:
    """Cluster of each rollout's answer."""
    found = [ABSTAINED] * len(tally.answers_G)
    for index, cluster in enumerate(tally.clusters):
        for member in cluster.members:
            found[member] = index
    return found


def minds_of(tally: Tally) -> list[int]:
    """Seed of each rollout's mind."""
    return [rollout.mind.seed for rollout in tally.group.rollouts_G]
