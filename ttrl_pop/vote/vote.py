r"""Vote: a group of rollouts → extracted answers, clusters of equal answers, a pseudo-label, rewards.

TTRL (arXiv 2504.16084) takes the majority answer of a group as its label. Here answers are clustered by the
grader's canonical key, then clusters merge where the grader calls them equal in both directions. A rollout
without an answer abstains: it stays in the denominator of agreement, never wins and equals nothing, other
abstentions included.

`weight` says how votes count (`ttrl_pop.config.VoteConfig.weight`):

| weight | vote |
|---|---|
| `rollout` | 1 for each rollout |
| `mind` | 1 for each mind, cast for its own most frequent answer; shared evenly where several are |
| `confidence` | exp(mean log p of its tokens) for each rollout |
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

from ttrl_pop.config import Weight
from ttrl_pop.errors import UsageError
from ttrl_pop.types import Cluster, Group, Mind, Rollout, Tally
from ttrl_pop.vote.extract import resolve_extract
from ttrl_pop.vote.graders.base import Grader
from ttrl_pop.vote.rewards.base import Ballot, Reward

Labels = Mapping[str, str | None]
"""Labels that others elected, by problem id; None where they all abstained."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How a group is voted on."""

    grader: Grader
    """Decides which answers are equal."""
    reward: Reward
    """Gives one finite number per rollout."""
    extract: str = "auto"
    """As `ttrl_pop.vote.extract.resolve_extract` takes it."""
    weight: Weight = "rollout"
    thinking: bool = False
    """Chat prompts end inside the thoughts."""
    token_limit: int | None = None
    """Longest completion, for rewards that look at lengths."""


def vote(group: Group, rules: Rules, labels: Labels | None = None) -> Tally:
    """Label a group by its majority answer and reward its rollouts.

    Nothing depends on the order of the rollouts: clusters stand by votes, those of equally many by canonical key.

    Args:
        group: the G rollouts of one problem.
        labels: where given, the label is the one that stands there, and the group's own majority has no say.

    Raises:
        UsageError: the extraction or the reward breaks its interface.
    """
    answers_G, keys_G = _answers(group, rules)
    clusters = _cluster(group.rollouts_G, answers_G, keys_G, rules)
    label = clusters[0].answer if clusters else None
    label_cluster = 0 if clusters else None
    if labels is not None:
        label = labels[group.problem.id]
        label_cluster = _cluster_of(label, clusters, keys_G, rules.grader)
    cluster_of = {member: index for index, cluster in enumerate(clusters) for member in cluster.members}
    ballot = Ballot(
        problem_id=group.problem.id,
        answers_G=tuple(answers_G),
        cluster_G=tuple(cluster_of.get(index) for index in range(len(answers_G))),
        shares=tuple(float(cluster.share) for cluster in clusters),
        label=label,
        label_cluster=label_cluster,
        texts_G=tuple(rollout.text for rollout in group.rollouts_G),
        finished_G=tuple(rollout.finish_reason == "stop" for rollout in group.rollouts_G),
        lengths_G=tuple(len(rollout.completion_ids) for rollout in group.rollouts_G),
        logprob_G=tuple(mean_logprob(rollout) for rollout in group.rollouts_G),
        token_limit=rules.token_limit,
    )
    rewards_G = tuple(rules.reward(ballot))
    if len(rewards_G) != len(answers_G) or not all(math.isfinite(value) for value in rewards_G):
        raise UsageError(f"a reward must return one finite number per rollout ({len(answers_G)}), got {rewards_G!r}")
    return Tally(group, ballot.answers_G, clusters, label, label_cluster, rewards_G)


def elect(group: Group, rules: Rules) -> str | None:
    """The label of a group of labellers, who are not rewarded."""
    answers_G, keys_G = _answers(group, rules)
    clusters = _cluster(group.rollouts_G, answers_G, keys_G, rules)
    return clusters[0].answer if clusters else None


def vote_in_background(groups: Iterable[Group], tally: Callable[[Group], Tally]) -> Iterator[Tally]:
    """Vote on each group in a thread while the next ones are being sampled; tallies in the order of the groups.

    A grader that works in a process of its own thus takes no time from sampling where a core is free.
    """
    with ThreadPoolExecutor(1, "vote") as pool:
        # The thread starts with the first thing to do: better now than when sampling has taken all memory.
        pool.submit(int).result()
        waiting: list[Future[Tally]] = []
        try:
            for group in groups:
                waiting.append(pool.submit(tally, group))
                while waiting and waiting[0].done():
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def mean_logprob(rollout: Rollout) -> float | None:
    """Mean log-probability of the completion's tokens, nats; None without tokens."""
    return math.fsum(rollout.logprobs) / len(rollout.logprobs) if rollout.logprobs else None


def _answers(group: Group, rules: Rules) -> tuple[list[str | None], list[str]]:
    """Extracted answers and their canonical keys ("" where there is no answer)."""
    extract = resolve_extract(rules.extract, group.problem.is_chat, rules.thinking)
    answers_G: list[str | None] = []
    keys_G: list[str] = []
    for rollout in group.rollouts_G:
        answer = extract(rollout.text, rollout.finish_reason)
        if not isinstance(answer, str | None):
            raise UsageError(f"extract {rules.extract!r} must return str or None, got {type(answer).__name__}")
        key = rules.grader.key(answer) if answer is not None else ""
        answers_G.append(answer if key else None)
        keys_G.append(key)
    return answers_G, keys_G


def _cluster(
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
    shares = _shares(rollouts_G, members, rules.weight)
    order = sorted(members, key=lambda root: (-shares[root], root))
    return tuple(Cluster(_commonest(merged[root]), tuple(members[root]), shares[root]) for root in order)


def _shares(rollouts_G: Sequence[Rollout], members: dict[str, list[int]], weight: Weight) -> dict[str, Fraction]:
    """Each cluster's share of all votes. Fractions add exactly: in any order, and with true ties."""
    if weight == "rollout":
        return {root: Fraction(len(indices), len(rollouts_G)) for root, indices in members.items()}
    if weight == "mind":
        return _shares_by_mind([rollout.mind for rollout in rollouts_G], members)
    weights_G = [_confidence(rollout) for rollout in rollouts_G]
    total = sum(weights_G)
    return {root: sum((weights_G[i] for i in indices), Fraction()) / total for root, indices in members.items()}


def _cluster_of(label: str | None, clusters: Sequence[Cluster], keys_G: Sequence[str], grader: Grader) -> int | None:
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
    mean = mean_logprob(rollout)
    if mean is None:
        if rollout.completion_ids or rollout.text:
            raise UsageError("vote.weight confidence needs the log-probabilities of every rollout; one has none")
        return Fraction(0)
    return Fraction(math.exp(max(mean, -700.0)))


def _shares_by_mind(minds_G: Sequence[Mind], members: dict[str, list[int]]) -> dict[str, Fraction]:
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
