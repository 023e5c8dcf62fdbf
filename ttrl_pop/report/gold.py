"""The one comparison with gold answers: every accuracy that is reported comes from here.

A rollout is right if its own answer equals gold, and a label if it does, whatever the vote held equal: a grader need
not be transitive, so members of one cluster may get different verdicts.

Beside a label (`A`) the text of its choice is as right, but not where the grader takes it for another label, as that of
letters takes `C. elegans` for C.
"""

import re
from collections.abc import Mapping, Sequence

from ttrl_pop.report.estimators import mean
from ttrl_pop.types import AnswerKey, GoldAnswer, Metrics, Same, Tally

_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")


def is_right(answer: str | None, gold: str, same: Same) -> bool:
    """Whether an answer equals the gold answer, or one that is as right."""
    if same(answer, gold):
        return True
    others = gold.others if isinstance(gold, GoldAnswer) else ()
    return any(same(answer, other) and not _is_other_label(other, gold, same) for other in others)


def _is_other_label(text: str, label: str, same: Same) -> bool:
    """Whether the text of the choice `label` is read as the label of another one."""
    letter = _LETTER.search(text) if _LETTER.fullmatch(label) and label.isupper() else None
    if letter is None or (other := letter[0].upper()) in (label, text):
        return False
    return same(text, other)


def answers_correct(answers_G: Sequence[str | None], gold: str, same: Same) -> tuple[bool, ...]:
    """Whether each answer equals the gold answer. A grader may be slow: it sees each spelling once, in their order."""
    verdicts = {answer: is_right(answer, gold, same) for answer in dict.fromkeys(answers_G)}
    return tuple(verdicts[answer] for answer in answers_G)


def label_correct(tally: Tally, answers: AnswerKey, same: Same) -> bool | None:
    """Whether the label equals the gold answer; None without gold, False without a label."""
    gold = answers.get(tally.group.problem.id)
    return None if gold is None else is_right(tally.label, gold, same)


def rollouts_correct(tally: Tally, answers: AnswerKey, same: Same) -> tuple[bool, ...] | None:
    """Whether each rollout's own answer equals the gold answer; None without gold."""
    gold = answers.get(tally.group.problem.id)
    return None if gold is None else answers_correct(tally.answers_G, gold, same)


def rollout_accuracy(tally: Tally, answers: AnswerKey, same: Same) -> float | None:
    """Share of a group's rollouts that are right; None without gold."""
    correct_G = rollouts_correct(tally, answers, same)
    return None if correct_G is None else sum(correct_G) / len(correct_G)


def clusters_correct(tally: Tally, correct_G: Sequence[bool]) -> tuple[bool, ...]:
    """Whether each cluster would be a right label, from `rollouts_correct`: the verdict on the cluster's answer."""
    verdicts = dict(zip(tally.answers_G, correct_G, strict=True))
    return tuple(verdicts[cluster.answer] for cluster in tally.clusters)


def rewards_correct(tally: Tally, correct_G: Sequence[bool]) -> tuple[bool, ...]:
    """Whether a majority reward is the one that gold would give each rollout: both or neither in label and right."""
    in_label = set(tally.clusters[tally.label_cluster].members) if tally.label_cluster is not None else set()
    return tuple((i in in_label) == right for i, right in enumerate(correct_G))


def gold_metrics(tallies: Sequence[Tally], answers: AnswerKey, same: Same) -> Metrics:
    """Shares of labels, of rollouts and of majority rewards that gold confirms; None where no gold is known."""
    labels: list[float] = []
    rollouts: list[float] = []
    rewards: list[float] = []
    for tally in tallies:
        correct_G = rollouts_correct(tally, answers, same)
        if correct_G is None:
            continue
        labels.append(float(bool(label_correct(tally, answers, same))))
        rollouts += map(float, correct_G)
        rewards += map(float, rewards_correct(tally, correct_G))
    return {
        "vote/label_accuracy": mean(labels),
        "vote/reward_accuracy": mean(rewards),
        "rollout/accuracy": mean(rollouts),
    }


def outcome_table(before: Mapping[str, bool], after: Mapping[str, bool]) -> dict[str, int]:
    """Count problems known in both: `learned` (wrong → right), `kept`, `lost` (right → wrong), `never`."""
    names = {(False, True): "learned", (True, True): "kept", (True, False): "lost", (False, False): "never"}
    counts = dict.fromkeys(names.values(), 0)
    for problem in before.keys() & after.keys():
        counts[names[bool(before[problem]), bool(after[problem])]] += 1
    return counts
