"""Clusters of equal answers, and the share of the votes that each of them has.

Equal keys put answers into one cluster; clusters merge where the grader holds their answers equal both ways. Merging is
transitive, though a grader need not be: two members of one cluster may not be equal by themselves.
"""

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations

from ttrl_pop.config import Weight
from ttrl_pop.errors import UsageError
from ttrl_pop.types import Cluster, Mind, Rollout, mean_logprob
from ttrl_pop.vote.graders.base import Grader
from ttrl_pop.vote.rules import Rules


def cluster_answers(
    rollouts_G: Sequence[Rollout], answers_G: Sequence[str | None], keys_G: Sequence[str], rules: Rules
) -> tuple[Cluster, ...]:
    """Clusters of equal answers, most votes first, ties by the smallest key in each."""
    spellings: dict[str, Counter[str]] = {}
    for answer, key in zip(answers_G, keys_G, strict=True):
        if answer is not None:
            spellings.setdefault(key, Counter())[answer] += 1
    root_of = _merge({key: _commonest(counts) for key, counts in spellings.items()}, rules.grader)
    members: dict[str, list[int]] = {}
    merged: dict[str, Counter[str]] = {}
    for index, (answer, key) in enumerate(zip(answers_G, keys_G, strict=True)):
        if answer is not None:
            members.setdefault(root_of[key], []).append(index)
            merged.setdefault(root_of[key], Counter())[answer] += 1
    shares = shares_of(rollouts_G, members, rules.weight)
    order = sorted(members, key=lambda root: (-shares[root], root))
    return tuple(Cluster(_commonest(merged[root]), tuple(members[root]), shares[root]) for root in order)


def shares_of(rollouts_G: Sequence[Rollout], members: dict[str, list[int]], weight: Weight) -> dict[str, Fraction]:
    """Each cluster's share of all votes. Fractions add exactly: in any order, and with true ties."""
    # Of one mind alone the favourite would have all votes, however few rollouts gave it.
    if weight == "rollout" or (weight == "mind" and len({rollout.mind for rollout in rollouts_G}) == 1):
        return {root: Fraction(len(indices), len(rollouts_G)) for root, indices in members.items()}
    if weight == "mind":
        return _shares_by_mind([rollout.mind for rollout in rollouts_G], members)
    weights_G = [_confidence(rollout) for rollout in rollouts_G]
    total = sum(weights_G)
    return {root: sum((weights_G[i] for i in indices), Fraction()) / total for root, indices in members.items()}


def cluster_equal_to(
    label: str | None, clusters: Sequence[Cluster], keys_G: Sequence[str], grader: Grader
) -> int | None:
    """Index of the cluster that equals `label`: one with a member of its key, else one whose answer is the same."""
    if label is None:
        return None
    key = grader.key(label)
    holds = (
        index for index, cluster in enumerate(clusters) if any(keys_G[member] == key for member in cluster.members)
    )
    equal = (index for index, cluster in enumerate(clusters) if grader.same(cluster.answer, label))
    return next(holds, next(equal, None))


def _confidence(rollout: Rollout) -> Fraction:
    """The weight of a vote by confidence: exp of the mean log-probability; 0 for a completion without tokens."""
    mean = mean_logprob(rollout)
    if mean is None:
        if rollout.completion_ids or rollout.text:
            raise UsageError("vote.weight confidence needs the log-probabilities of every rollout; one has none")
        return Fraction(0)
    return Fraction(math.exp(max(mean, -700.0)))


def _shares_by_mind(minds_G: Sequence[Mind], members: dict[str, list[int]]) -> dict[str, Fraction]:
    """Shares where each mind has one vote, for its own most frequent answer; split evenly where several are."""
    counts: dict[Mind, Counter[str]] = {mind: Counter() for mind in minds_G}
    for root, indices in members.items():
        for index in indices:
            counts[minds_G[index]][root] += 1
    shares = dict.fromkeys(members, Fraction())
    for count in counts.values():
        favourites = [root for root, votes in count.items() if votes == max(count.values())]
        for root in favourites:
            shares[root] += Fraction(1, len(favourites) * len(counts))
    return shares


def _merge(answers: dict[str, str], grader: Grader) -> dict[str, str]:
    """Each key → the smallest key that it is connected to by `equal` in both directions (union-find)."""
    root = {key: key for key in answers}

    def find(key: str) -> str:
        while root[key] != key:
            root[key] = root[root[key]]
            key = root[key]
        return key

    for a, b in combinations(sorted(answers), 2):
        root_a, root_b = find(a), find(b)
        if root_a != root_b and grader.equal(answers[a], answers[b]) and grader.equal(answers[b], answers[a]):
            root[max(root_a, root_b)] = min(root_a, root_b)
    return {key: find(key) for key in answers}


def _commonest(counts: Counter[str]) -> str:
    """The spelling that came most often; the lexicographically first among equals."""
    return min(counts, key=lambda answer: (-counts[answer], answer))
