r"""Vote: a group of rollouts → extracted answers, clusters of equal answers, a pseudo-label, rewards.

TTRL (arXiv 2504.16084) takes the majority answer of a group as its label. Here answers are clustered by the
grader's canonical key, then clusters merge where the grader calls them equal in both directions. A rollout
without an answer abstains: it stays in the denominator of agreement, never wins and equals nothing, other
abstentions included.

Simplification: one vote per rollout, of equal weight.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from ttrl_pop.errors import UsageError
from ttrl_pop.extract import resolve_extract
from ttrl_pop.graders.base import Grader
from ttrl_pop.rewards import Ballot, Reward
from ttrl_pop.types import Cluster, Group, Tally


def vote(group: Group, extract: str, grader: Grader, reward: Reward) -> Tally:
    """Label a group by its majority answer and reward its rollouts.

    Nothing depends on the order of the rollouts: clusters stand by size, those of one size by canonical key.

    Args:
        group: the G rollouts of one problem.
        extract: `auto` or `package.module:function`.
        grader: decides which answers are equal.
        reward: gives one finite number per rollout.

    Raises:
        UsageError: `extract` or `reward` breaks its interface.
    """
    extract_answer = resolve_extract(extract, group.problem.is_chat)
    answers_G: list[str | None] = []
    keys_G: list[str] = []
    for rollout in group.rollouts_G:
        answer = extract_answer(rollout.text, rollout.finish_reason)
        if not isinstance(answer, str | None):
            raise UsageError(f"extract {extract!r} must return str or None, got {type(answer).__name__}")
        key = grader.key(answer) if answer is not None else ""
        answers_G.append(answer if key else None)
        keys_G.append(key)
    clusters = _cluster(answers_G, keys_G, grader)
    cluster_of = {member: index for index, cluster in enumerate(clusters) for member in cluster.members}
    ballot = Ballot(
        problem_id=group.problem.id,
        answers_G=tuple(answers_G),
        cluster_G=tuple(cluster_of.get(index) for index in range(len(answers_G))),
        sizes=tuple(len(cluster.members) for cluster in clusters),
        label=clusters[0].answer if clusters else None,
        texts_G=tuple(rollout.text for rollout in group.rollouts_G),
    )
    rewards_G = tuple(reward(ballot))
    if len(rewards_G) != len(answers_G) or not all(math.isfinite(value) for value in rewards_G):
        raise UsageError(f"a reward must return one finite number per rollout ({len(answers_G)}), got {rewards_G!r}")
    return Tally(group, ballot.answers_G, clusters, ballot.label, rewards_G)


def _cluster(answers_G: Sequence[str | None], keys_G: Sequence[str], grader: Grader) -> tuple[Cluster, ...]:
    """Clusters of equal answers, largest first, ties by the smallest key in each."""
    spellings: dict[str, Counter[str]] = {}
    for answer, key in zip(answers_G, keys_G, strict=True):
        if answer is not None:
            spellings.setdefault(key, Counter())[answer] += 1
    root_of = _merge({key: _commonest(counts) for key, counts in spellings.items()}, grader)
    members: dict[str, list[int]] = {}
    merged: dict[str, Counter[str]] = {}
    for index, (answer, key) in enumerate(zip(answers_G, keys_G, strict=True)):
        if answer is not None:
            members.setdefault(root_of[key], []).append(index)
            merged.setdefault(root_of[key], Counter())[answer] += 1
    order = sorted(members, key=lambda root: (-len(members[root]), root))
    return tuple(Cluster(_commonest(merged[root]), tuple(members[root])) for root in order)


def _merge(answers: dict[str, str], grader: Grader) -> dict[str, str]:
    """Union-find: each key → the smallest key that it is connected to by `equal` in both directions."""
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
    return min(counts, key=lambda answer: (-counts[answer], answer))
