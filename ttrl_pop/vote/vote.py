r"""Vote: a group of rollouts → extracted answers, clusters of equal answers, a pseudo-label, rewards.

TTRL (arXiv 2504.16084) takes the majority answer of a group as its label. Here answers are clustered by the
grader's canonical key, then clusters merge where the grader calls them equal in both directions. A rollout
without an answer abstains: it stays in the denominator of agreement, never wins and equals nothing, other
abstentions included.

`weight` says how votes count (`ttrl_pop.config.VoteConfig.weight`):

| weight | vote |
|---|---|
| `rollout` | 1 for each rollout |
| `mind` | 1 for each mind, cast for its own most frequent answer, or shared evenly; `rollout` where one wrote all |
| `confidence` | exp(mean log p of its tokens) for each rollout |
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ttrl_pop.errors import UsageError
from ttrl_pop.types import Group, Tally, mean_logprob
from ttrl_pop.vote.clusters import cluster_answers, cluster_equal_to
from ttrl_pop.vote.rewards.base import Ballot, paid
from ttrl_pop.vote.rules import Labels, Rules


def vote(group: Group, rules: Rules, labels: Labels | None = None) -> Tally:
    """Label a group by its majority answer and reward its rollouts.

    Nothing depends on the order of the rollouts: clusters stand by votes, those of equally many by canonical key.

    Args:
        group: the G rollouts of one problem.
        labels: where given, the label is the one that stands there, and the group's own majority has no say.

    Raises:
        UsageError: the extraction, the grader or the reward breaks its interface.
    """
    before = rules.grader.timeouts
    answers_G, keys_G = _answers(group, rules)
    clusters = cluster_answers(group.rollouts_G, answers_G, keys_G, rules)
    label = clusters[0].answer if clusters else None
    label_cluster = 0 if clusters else None
    if labels is not None:
        label = labels[group.problem.id]
        label_cluster = cluster_equal_to(label, clusters, keys_G, rules.grader)
    if rules.reward is None:
        return Tally(group, tuple(answers_G), clusters, label, label_cluster, (), rules.grader.timeouts - before)
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
    rewards_G = paid(rules.reward_name, rules.reward, ballot)
    timeouts = rules.grader.timeouts - before
    return Tally(group, ballot.answers_G, clusters, label, label_cluster, rewards_G, timeouts)


def elect(group: Group, rules: Rules) -> str | None:
    """The label of a group of labellers, who are not rewarded."""
    answers_G, keys_G = _answers(group, rules)
    clusters = cluster_answers(group.rollouts_G, answers_G, keys_G, rules)
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


def _answers(group: Group, rules: Rules) -> tuple[list[str | None], list[str]]:
    """Extracted answers and their canonical keys ("" where there is no answer)."""
    rules.grader.forget()
    answers_G: list[str | None] = []
    keys_G: list[str] = []
    for rollout in group.rollouts_G:
        answer = rules.extractor.answer(rollout.text, rollout.finish_reason, group.problem.is_chat, rules.thinking)
        key: Any = rules.grader.key(answer) if answer is not None else ""
        if not isinstance(key, str):
            raise UsageError(
                f"grader {type(rules.grader).__name__}: key must return a text, got a {type(key).__name__} for the "
                f"answer {answer!r}"
            )
        answers_G.append(answer if key else None)
        keys_G.append(key)
    return answers_G, keys_G
