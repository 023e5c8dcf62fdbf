"""A reward plug-in: the majority reward, scaled down for texts longer than the group's median.

PYTHONPATH=examples/plugins ttrl-pop run problems.jsonl --reward reward_short:short_majority
"""

from statistics import median

from ttrl_pop import Ballot, majority


def short_majority(ballot: Ballot) -> tuple[float, ...]:
    """1[c = top] × min(1, median length / length), lengths in characters."""
    typical = median(len(text) for text in ballot.texts_G)
    return tuple(
        reward * min(1.0, typical / max(1, len(text)))
        for reward, text in zip(majority(ballot), ballot.texts_G, strict=True)
    )
