"""Formulas of what is reported, pure: means, avg@n, pass@k, maj@k, and bootstrap intervals over problems."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

BLOCK = 2**15
"""Values that the bootstrap draws at once."""


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are known; None where none is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


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
    check_k(k)
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
    check_k(k)
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
    # Many samples at once, which draws the same numbers as one after the other.
    block = max(1, BLOCK // known.size)
    counts = [min(block, samples - done) for done in range(0, samples, block)]
    means = [known[rng.integers(known.size, size=(count, known.size))].mean(axis=1) for count in counts]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
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


def check_k(k: int) -> None:
    """
    Raises:
        ValueError: k < 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


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


def _check_counts(correct: int, n: int) -> None:
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"correct must lie in 0..n with n ≥ 1, got {correct} of {n}")
