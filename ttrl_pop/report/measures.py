"""One pass over the problems in figures: avg@n, pass@k, maj@k and those that need no gold, with bootstrap intervals.

avg@n and pass@k count the rollouts whose own answer equals gold, maj@k the elections that gold confirms.

Simplifications:

1. The bootstrap resamples problems, not rollouts. Where every problem has the same value its
   interval has no width: the sample shows no spread, which is not to say that the figure is certain.
2. A mean leaves out the problems on which a figure is undefined (no gold answer, or fewer than k rollouts).
3. A cluster that wins one of maj@k's draws is elected under the answer that it has in the whole group, whichever of its
   spellings were drawn. So, with one vote for each rollout, maj@n is the verdict on the group's own label (the mean, if
   several tie), and maj@1 is avg@n only where the grader gives all members of a cluster one verdict.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ttrl_pop.report.estimators import avg_at_n, bootstrap_interval, check_k, maj_at_k, mean, pass_at_k
from ttrl_pop.report.gold import clusters_correct, label_correct, rewards_correct, rollouts_correct
from ttrl_pop.report.minds import agreement
from ttrl_pop.types import NO_SIGNAL, AnswerKey, Same, Tally

LABEL_FREE: dict[str, Callable[[Tally], float | None]] = {
    "agreement": lambda tally: tally.agreement,
    "margin": lambda tally: tally.margin,
    "answer_entropy": lambda tally: tally.entropy,
    "abstained": lambda tally: tally.abstained / len(tally.answers_G),
    "unique_answers": lambda tally: float(len(tally.clusters)),
    "same_mind": lambda tally: agreement(tally).same,
    "other_minds": lambda tally: agreement(tally).other,
    "no_signal": lambda tally: (
        float(max(tally.rewards_G) - min(tally.rewards_G) < NO_SIGNAL) if tally.rewards_G else None
    ),
    "mean_length": lambda tally: (
        sum(len(rollout.completion_ids) for rollout in tally.group.rollouts_G) / len(tally.group.rollouts_G)
    ),
    "truncated": lambda tally: (
        sum(rollout.finish_reason == "length" for rollout in tally.group.rollouts_G) / len(tally.group.rollouts_G)
    ),
}
"""Figures of one tally that need no gold answer."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Figures of one pass over the problems. What needs gold or rewards is None without them, never 0.

    Keys: `agreement margin answer_entropy abstained unique_answers same_mind other_minds no_signal mean_length
    truncated`, and, from gold, `avg@{n} label_accuracy reward_accuracy pass@{k} maj@{k}`. n is the group size, or the
    letter n where groups differ. `abstained` and `truncated` are shares of rollouts, `no_signal` of groups;
    `mean_length` counts tokens.
    """

    values: dict[str, float | None]
    """Key → mean over problems."""
    intervals: dict[str, tuple[float, float] | None]
    """Key → 95 % bootstrap interval over problems."""
    per_problem: dict[str, dict[str, float | None]]
    """Problem id → key → value, in the order of the tallies."""


def measure(tallies: Sequence[Tally], answers: AnswerKey, same: Same, ks: Sequence[int], seed: int) -> Measures:
    """Measure one pass over the problems; `seed` keys the bootstrap.

    A group that abstained as a whole has no label, and its label counts as wrong.

    Raises:
        ValueError: two tallies are of one problem, or a k is below 1.
    """
    for k in ks:
        check_k(k)
    sizes = {len(tally.answers_G) for tally in tallies}
    n = str(sizes.pop()) if len(sizes) == 1 else "n"
    per_problem: dict[str, dict[str, float | None]] = {}
    for tally in tallies:
        problem = tally.group.problem.id
        if problem in per_problem:
            raise ValueError(f"measure takes one tally per problem, got two of {problem!r}; measure each pass apart")
        per_problem[problem] = _label_free(tally) | _against_gold(tally, answers, same, ks, n)
    keys = [*LABEL_FREE, *_gold_keys(ks, n)]
    columns = {key: [row[key] for row in per_problem.values()] for key in keys}
    return Measures(
        values={key: mean(column) for key, column in columns.items()},
        intervals={key: bootstrap_interval(column, seed) for key, column in columns.items()},
        per_problem=per_problem,
    )


def _label_free(tally: Tally) -> dict[str, float | None]:
    return {key: figure(tally) for key, figure in LABEL_FREE.items()}


def _gold_keys(ks: Sequence[int], n: str) -> list[str]:
    return [f"avg@{n}", "label_accuracy", "reward_accuracy", *(f"{kind}@{k}" for k in ks for kind in ("pass", "maj"))]


def _against_gold(tally: Tally, answers: AnswerKey, same: Same, ks: Sequence[int], n: str) -> dict[str, float | None]:
    correct_G = rollouts_correct(tally, answers, same)
    if correct_G is None:
        return dict.fromkeys(_gold_keys(ks, n))
    size, right = len(correct_G), sum(correct_G)
    sizes = [len(cluster.members) for cluster in tally.clusters]
    elected = clusters_correct(tally, correct_G)
    row: dict[str, float | None] = {
        f"avg@{n}": avg_at_n(right, size),
        "label_accuracy": float(bool(label_correct(tally, answers, same))),
        "reward_accuracy": mean([float(right) for right in rewards_correct(tally, correct_G)]),
    }
    return row | at_k(right, sizes, elected, tally.abstained, ks)


def ks_up_to(size: int) -> list[int]:
    """The k of pass@k and maj@k for groups of `size` rollouts: the powers of two, and the size itself."""
    return sorted({2**i for i in range(size.bit_length())} | {size})


def at_k(
    right: int, sizes: Sequence[int], elected: Sequence[bool], abstained: int, ks: Sequence[int]
) -> dict[str, float | None]:
    """pass@k and maj@k of one group.

    Args:
        right: rollouts whose own answer is right.
        sizes: rollouts in each cluster.
        elected: whether each cluster would be a right label.
        abstained: rollouts without an answer.
    """
    row: dict[str, float | None] = {}
    for k in ks:
        row[f"pass@{k}"] = pass_at_k(sum(sizes) + abstained, right, k)
        row[f"maj@{k}"] = maj_at_k(sizes, elected, abstained, k)
    return row
