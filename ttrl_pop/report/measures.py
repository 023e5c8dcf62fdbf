"""How good a set of votes is: avg@n, pass@k, maj@k and label-free figures, with bootstrap intervals. Pure.

Rollouts are graded cluster by cluster: members of one cluster count as equal, so they share one verdict.

Simplifications:

1. The percentile bootstrap resamples problems, not rollouts. Where every problem has the same value its
   interval has no width: the sample shows no spread, which is not to say that the figure is certain.
2. A mean leaves out the problems on which a figure is undefined (no gold answer, or fewer than k rollouts).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ttrl_pop.types import AnswerKey, Same, Tally

Floats: TypeAlias = NDArray[np.float64]

NO_SIGNAL = 1e-6
"""Rewards of one group that differ by less carry no advantage."""

LABEL_FREE: dict[str, Callable[[Tally], float]] = {
    "agreement": lambda tally: tally.agreement,
    "margin": lambda tally: tally.margin,
    "answer_entropy": lambda tally: tally.entropy,
    "abstained": lambda tally: tally.abstained / len(tally.answers_G),
    "unique_answers": lambda tally: float(len(tally.clusters)),
    "no_signal": lambda tally: float(max(tally.rewards_G) - min(tally.rewards_G) < NO_SIGNAL),
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
    """Figures of one pass over the problems. A figure that needs gold is None without it, never 0.

    Keys: `agreement margin answer_entropy abstained unique_answers no_signal mean_length truncated`, and,
    from gold, `avg@{n} label_accuracy reward_accuracy pass@{k} maj@{k}`. n is the group size, or the
    letter n where groups differ. `abstained` and `truncated` are shares of rollouts, `no_signal` of groups;
    `mean_length` counts tokens.
    """

    values: dict[str, float | None]
    """Key → mean over problems."""
    intervals: dict[str, tuple[float, float] | None]
    """Key → 95 % bootstrap interval over problems."""
    per_problem: dict[str, dict[str, float | None]]
    """Problem id → key → value, in the order of the tallies."""


def avg_at_n(correct: int, n: int) -> float:
    """Share of n rollouts that are correct: c / n.

    Raises:
        ValueError: not 0 ≤ correct ≤ n, or n < 1.
    """
    _check_counts(correct, n)
    return correct / n


def pass_at_k(n: int, c: int, k: int) -> float | None:
    """Probability that k of n rollouts, drawn without replacement, hold one of the c correct ones.

    1 − C(n−c, k) / C(n, k), as the product 1 − Π_{i=n−c+1..n} (1 − k/i) (Chen et al. 2021, arXiv 2107.03374,
    eq. 1 and figure 3). None when n < k.

    Raises:
        ValueError: not 0 ≤ c ≤ n, n < 1 or k < 1.
    """
    _check_counts(c, n)
    _check_k(k)
    if n < k:
        return None
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def maj_at_k(cluster_sizes: Sequence[int], correct: Sequence[bool], abstained: int, k: int) -> float | None:
    """Expected correctness of the majority of k rollouts drawn without replacement. None when n < k.

    The largest cluster of the draw wins; tied clusters share the credit evenly; an abstention never wins, so
    a draw of abstentions alone scores 0. With X_c the votes of cluster c in the draw,

        maj@k = Σ_{c correct} Σ_{v ≥ 1} Σ_t P(X_c = v, t rivals have v too, no rival has more) / (1 + t)

    The draw (multivariate hypergeometric) equals independent X_i ~ Binomial(n_i, k/n) given Σ X_i = k. Their
    joint table over (ties, votes used) grows cluster by cluster, so the result is exact to rounding for a
    group of any size, without enumeration or Monte Carlo.

    Args:
        cluster_sizes: rollouts in each cluster, each ≥ 1.
        correct: whether each cluster equals gold.
        abstained: rollouts without an answer.
        k: size of the draw.

    Raises:
        ValueError: a size or k below 1, `abstained` below 0, or sequences of unequal length.
    """
    _check_k(k)
    if len(cluster_sizes) != len(correct) or min(cluster_sizes, default=1) < 1 or abstained < 0:
        raise ValueError(
            f"clusters need a size ≥ 1 and a verdict each, and abstentions ≥ 0, got sizes {cluster_sizes}, "
            f"verdicts {correct} and {abstained} abstentions"
        )
    n = sum(cluster_sizes) + abstained
    if n < k:
        return None
    if n == k:
        return _majority_credit(cluster_sizes, correct)
    if all(correct) and not abstained:
        return 1.0
    credit = 0.0
    for i, size in enumerate(cluster_sizes):
        if correct[i]:
            rivals = [*cluster_sizes[:i], *cluster_sizes[i + 1 :]]
            credit += _winning_credit(size, rivals, abstained, k, n)
    return min(1.0, credit / float(_binomial(n, k / n)[k]))


def bootstrap_interval(
    values: Sequence[float | None], seed: int, samples: int = 2000, level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean (Efron & Tibshirani 1993, chapter 13).

    None is left out. None with no values; a single value gives (v, v).
    """
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if known.size == 0:
        return None
    rng = np.random.Generator(np.random.Philox(key=seed))
    means = [known[rng.integers(known.size, size=known.size)].mean() for _ in range(samples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_difference(
    before: Mapping[str, float | None],
    after: Mapping[str, float | None],
    seed: int,
    samples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float, float] | None:
    """Mean, low and high of after − before, paired over the problems whose value is known in both.

    Pairing removes the spread between easy and hard problems. None when no problem is known in both.
    """
    differences = [
        new - old for problem, old in before.items() if old is not None and (new := after.get(problem)) is not None
    ]
    interval = bootstrap_interval(differences, seed, samples, level)
    return None if interval is None else (math.fsum(differences) / len(differences), *interval)


def outcome_table(before: Mapping[str, bool], after: Mapping[str, bool]) -> dict[str, int]:
    """Count problems known in both: `learned` (wrong → right), `kept`, `lost` (right → wrong), `never`."""
    names = {(False, True): "learned", (True, True): "kept", (True, False): "lost", (False, False): "never"}
    counts = dict.fromkeys(names.values(), 0)
    for problem in before.keys() & after.keys():
        counts[names[bool(before[problem]), bool(after[problem])]] += 1
    return counts


def measure(tallies: Sequence[Tally], answers: AnswerKey, same: Same, ks: Sequence[int], seed: int) -> Measures:
    """Measure one pass over the problems; `seed` keys the bootstrap.

    A group that abstained as a whole has no label, and its label counts as wrong.

    Raises:
        ValueError: two tallies are of one problem, or a k is below 1.
    """
    for k in ks:
        _check_k(k)
    sizes = {len(tally.answers_G) for tally in tallies}
    n = str(sizes.pop()) if len(sizes) == 1 else "n"
    per_problem: dict[str, dict[str, float | None]] = {}
    for tally in tallies:
        problem = tally.group.problem.id
        if problem in per_problem:
            raise ValueError(f"measure takes one tally per problem, got two of {problem!r}; measure each pass apart")
        per_problem[problem] = _label_free(tally) | _against_gold(tally, answers.get(problem), same, ks, n)
    keys = [
        *LABEL_FREE,
        f"avg@{n}",
        "label_accuracy",
        "reward_accuracy",
        *(f"{kind}@{k}" for k in ks for kind in ("pass", "maj")),
    ]
    columns = {key: [row[key] for row in per_problem.values()] for key in keys}
    return Measures(
        values={key: _mean(column) for key, column in columns.items()},
        intervals={key: bootstrap_interval(column, seed) for key, column in columns.items()},
        per_problem=per_problem,
    )


def _label_free(tally: Tally) -> dict[str, float | None]:
    return {key: figure(tally) for key, figure in LABEL_FREE.items()}


def _against_gold(tally: Tally, gold: str | None, same: Same, ks: Sequence[int], n: str) -> dict[str, float | None]:
    row: dict[str, float | None] = {f"avg@{n}": None, "label_accuracy": None, "reward_accuracy": None}
    if gold is None:
        return row | {f"{kind}@{k}": None for k in ks for kind in ("pass", "maj")}
    sizes = [len(cluster.members) for cluster in tally.clusters]
    verdicts = [same(cluster.answer, gold) for cluster in tally.clusters]
    right = sum(size for size, verdict in zip(sizes, verdicts, strict=True) if verdict)
    size = len(tally.answers_G)
    row[f"avg@{n}"] = avg_at_n(right, size)
    in_label = set(tally.clusters[tally.label_cluster].members) if tally.label_cluster is not None else set()
    right_G = {
        member
        for cluster, verdict in zip(tally.clusters, verdicts, strict=True)
        if verdict
        for member in cluster.members
    }
    row["reward_accuracy"] = 1 - len(in_label ^ right_G) / size
    row["label_accuracy"] = float(tally.label is not None and same(tally.label, gold))
    for k in ks:
        row[f"pass@{k}"] = pass_at_k(size, right, k)
        row[f"maj@{k}"] = maj_at_k(sizes, verdicts, tally.abstained, k)
    return row


def _majority_credit(cluster_sizes: Sequence[int], correct: Sequence[bool]) -> float:
    winners = [ok for size, ok in zip(cluster_sizes, correct, strict=True) if size == max(cluster_sizes)]
    return sum(winners) / len(winners) if winners else 0.0


def _winning_credit(size: int, rivals: Sequence[int], abstained: int, k: int, n: int) -> float:
    """Σ_v Σ_t P(X = v, t rivals tie, none has more, Σ X_i = k) / (1 + t), X ~ Binomial(size, k/n)."""
    p = k / n
    own = _binomial(size, p)
    chances = [_binomial(rival, p) for rival in rivals]
    silent = _binomial(abstained, p)
    credit = 0.0
    for v in range(1, min(size, k) + 1):
        # Row t, column u: chance that t rivals have v votes, none has more, and all together have used u.
        table = np.zeros((min(len(rivals), k // v - 1) + 1, k + 1))
        table[0, v] = own[v]
        for chance in chances:
            grown = _convolve(table, chance[:v])
            if len(chance) > v and len(table) > 1:
                grown[1:, v:] += chance[v] * table[:-1, :-v]
            table = grown
        credit += float((_convolve(table, silent)[:, k] / np.arange(1, len(table) + 1)).sum())
    return credit


def _convolve(table: Floats, chance: Floats) -> Floats:
    """Rows of `table` convolved with `chance`, cut to the table's width."""
    grown = np.zeros_like(table)
    for j, share in enumerate(chance[: table.shape[1]]):
        grown[:, j:] += share * table[:, : table.shape[1] - j]
    return grown


def _binomial(n: int, p: float) -> Floats:
    """P(X = 0..n) for X ~ Binomial(n, p), 0 < p < 1; by logarithms, as C(n, j) overflows beyond n ≈ 1000."""
    return np.array(
        [
            math.exp(
                math.lgamma(n + 1)
                - math.lgamma(j + 1)
                - math.lgamma(n - j + 1)
                + j * math.log(p)
                + (n - j) * math.log1p(-p)
            )
            for j in range(n + 1)
        ]
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _check_counts(correct: int, n: int) -> None:
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"correct must lie in 0..n with n ≥ 1, got {correct} of {n}")


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
