"""Rewards that need the votes alone: majority, frequency and gated; format and overlong as terms to add."""

import math
from statistics import fmean

from ttrl_pop.errors import UsageError
from ttrl_pop.vote.rewards.base import Ballot

CONSENSUS = 0.375
"""Smallest share of votes at which `gated` trusts the label."""

LEAD = 0.125
"""Lead over the next answer that `gated` asks for more than."""

ROUNDING = 1e-9
"""Difference up to which floats count as equal shares or certainties."""

RARE = 0.125
"""Answers with a smaller share may be punished by `gated`."""

BUFFER = 0.2
"""Share of the token limit over which `overlong` falls to −1."""


def majority(ballot: Ballot) -> tuple[float, ...]:
    """1[c = label], else 0, abstentions too (TTRL, arXiv 2504.16084)."""
    label = ballot.label_cluster
    return tuple(float(cluster is not None and cluster == label) for cluster in ballot.cluster_G)


def frequency(ballot: Ballot) -> tuple[float, ...]:
    """p_c, the share of the answer's cluster (EMPO, arXiv 2504.05812).

    Abstentions count in the whole and get 0. When all answers differ, the whole group gets 0.
    """
    answered = [cluster for cluster in ballot.cluster_G if cluster is not None]
    if len(set(answered)) == len(answered):
        return (0.0,) * len(ballot.answers_G)
    return tuple(0.0 if cluster is None else ballot.shares[cluster] for cluster in ballot.cluster_G)


def gated(ballot: Ballot) -> tuple[float, ...]:
    """1 for the label, but only where consensus is clear; −1 for rare answers of the unsure, and for none (SCRL,
    arXiv 2603.19880).

        1   if c = label, p1 ≥ 0.375 and p1 − p2 > 0.125
        −1  if there is no answer, or p_c < 0.125 and the answer is less certain than the average
        0   otherwise

    p1 is the label's share and p2 the largest other. The certainty of an answer is the mean, over the rollouts that
    gave it, of their mean log p; the average is over all rollouts that answered. Without log-probabilities nothing is
    known to be uncertain.
    """
    label = ballot.label_cluster
    share = 0.0 if label is None else ballot.shares[label]
    next_share = max((p for cluster, p in enumerate(ballot.shares) if cluster != label), default=0.0)
    trusted = share >= CONSENSUS - ROUNDING and share - next_share > LEAD + ROUNDING
    known = [
        (cluster, logprob)
        for cluster, logprob in zip(ballot.cluster_G, ballot.logprob_G, strict=True)
        if cluster is not None and logprob is not None
    ]
    average = fmean(logprob for _, logprob in known) if known else -math.inf

    def reward(cluster: int | None) -> float:
        if cluster is None:
            return -1.0
        if cluster == label and trusted:
            return 1.0
        certainty = [logprob for other, logprob in known if other == cluster]
        unsure = bool(certainty) and fmean(certainty) < average - ROUNDING
        return -1.0 if ballot.shares[cluster] < RARE - ROUNDING and unsure else 0.0

    return tuple(reward(cluster) for cluster in ballot.cluster_G)


def form(ballot: Ballot) -> tuple[float, ...]:
    """1 for a completion that ended by itself and holds an answer where one is looked for, else 0; a term to add."""
    return tuple(
        float(answer is not None and finished)
        for answer, finished in zip(ballot.answers_G, ballot.finished_G, strict=True)
    )


def overlong(ballot: Ballot) -> tuple[float, ...]:
    """0 up to (1 − b)·L tokens, then falling linearly to −1 at the limit L, b = 0.2; −1 if cut off (soft overlong
    punishment of DAPO, arXiv 2503.14476 eq. 13). A term to add; pass learn.mask_truncated=false with it.

    Raises:
        UsageError: the limit is not known.
    """
    limit = ballot.token_limit
    if limit is None:
        raise UsageError("reward overlong needs the token limit of the rollouts, which is not known here")

    def reward(length: int, finished: bool) -> float:
        return -1.0 if not finished else -min(1.0, max(0.0, (length / limit - (1 - BUFFER)) / BUFFER))

    return tuple(reward(length, finished) for length, finished in zip(ballot.lengths_G, ballot.finished_G, strict=True))
