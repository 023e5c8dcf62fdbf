"""The one comparison with gold answers."""

from collections.abc import Mapping, Sequence

from ttrl_pop.report.estimators import mean
from ttrl_pop.types import AnswerKey, Metrics, Same, Tally


def outcome_table(before: Mapping[str, bool], after: Mapping[str, bool]) -> dict[str, int]:
    """Count problems known in both: `learned` (wrong → right), `kept`, `lost` (right → wrong), `never`."""
    names = {(False, True): "learned", (True, True): "kept", (True, False): "lost", (False, False): "never"}
    counts = dict.fromkeys(names.values(), 0)
    for problem in before.keys() & after.keys():
        counts[names[bool(before[problem]), bool(after[problem])]] += 1
    return counts


def label_correct(tally: Tally, answers: AnswerKey, same: Same) -> bool | None:
    """Whether the label equals the gold answer; None without gold, False without a label."""
    gold = answers.get(tally.group.problem.id)
    return None if gold is None else same(tally.label, gold)


def rollouts_correct(tally: Tally, answers: AnswerKey, same: Same) -> tuple[bool, ...] | None:
    """Whether each rollout's answer equals the gold answer; None without gold."""
    gold = answers.get(tally.group.problem.id)
    if gold is None:
        return None
    verdicts = {answer: same(answer, gold) for answer in set(tally.answers_G)}
    return tuple(verdicts[answer] for answer in tally.answers_G)


def gold_metrics(tallies: Sequence[Tally], answers: AnswerKey, same: Same) -> Metrics:
    """Shares of labels, of rollouts and of (label or not) verdicts that gold confirms; None where none is known."""
    labels: list[float] = []
    rollouts: list[float] = []
    rewards_right: list[float] = []
    for tally in tallies:
        correct = rollouts_correct(tally, answers, same)
        if correct is None:
            continue
        labels.append(float(bool(label_correct(tally, answers, same))))
        rollouts += [float(right) for right in correct]
        in_label = set(tally.clusters[tally.label_cluster].members) if tally.label_cluster is not None else set()
        rewards_right += [float((i in in_label) == right) for i, right in enumerate(correct)]
    return {
        "vote/label_accuracy": mean(labels),
        "vote/reward_accuracy": mean(rewards_right),
        "rollout/accuracy": mean(rollouts),
    }
