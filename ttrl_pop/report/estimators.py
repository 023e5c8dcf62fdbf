"""Formulas of what is reported, pure: means, avg@n, pass@k, maj@k, bootstrap intervals over problems, and intervals
over seeds and problems."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64
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
    """Expanded percentile bootstrap interval of the mean (Hesterberg, The American Statistician 69, 2015): its ends lie
    as far out as Student's t and n − 1 in the place of n put them, as the plain percentile interval (Efron & Tibshirani
    1993, chapter 13) holds 84 % for five normal values in the place of 92.

    None is left out. None with no values; values that are all equal give (v, v), however few.
    """
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if known.size == 0:
        return None
    rng = np.random.Generator(np.random.Philox(key=seed))
    # Many samples at once, which draws the same numbers as one after the other.
    block = max(1, BLOCK // known.size)
    counts = [min(block, samples - done) for done in range(0, samples, block)]
    means = [known[rng.integers(known.size, size=(count, known.size))].mean(axis=1) for count in counts]
    tail = _expanded_tail(known.size, level) if known.size > 1 else 0.0
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def _expanded_tail(size: int, level: float) -> float:
    """P(Z < −√(n / (n − 1)) · t_{n−1}) for a standard normal Z."""
    return math.erfc(math.sqrt(size / (size - 1)) * student_quantile(level, size - 1) / math.sqrt(2)) / 2


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


def crossed_interval(x_SP: Float64[np.ndarray, "S P"], level: float = 0.95) -> tuple[float, float, float] | None:
    """Mean, low and high over S seeds that each met the same P problems: how far the mean would move with other seeds
    and with other problems of the same kind.

    Both are random effects, x_sp = m + a_s + b_p + e_sp. With the mean squares MS_s, MS_p and MS_e of the two-way
    analysis of variance, and t_n the level's quantile of |t| with n degrees of freedom,

        half width² = (t²_{S−1} · max(0, MS_s − MS_e) + t²_{P−1} · max(MS_p, MS_e)) / (S·P)

    which adds the squared half width of either effect alone, as Zou and Donner do for sums (Statistics in Medicine 27,
    2008). It holds what it promises from 3 seeds on; where neither seeds nor problems differ it is too wide. With one
    seed it is Student's interval over problems, with one problem that over seeds; None for fewer than two values.
    """
    if x_SP.size < 2:
        return None
    seeds, problems = x_SP.shape
    mean_value = math.fsum(x_SP.flat) / x_SP.size
    if seeds == 1 or problems == 1:
        t = student_quantile(level, x_SP.size - 1)
        half = t * float(np.std(x_SP, ddof=1)) / math.sqrt(x_SP.size)
        return mean_value, mean_value - half, mean_value + half
    by_seed, by_problem = x_SP.mean(axis=1, keepdims=True), x_SP.mean(axis=0, keepdims=True)
    ms_seed = problems * float(((by_seed - mean_value) ** 2).sum()) / (seeds - 1)
    ms_problem = seeds * float(((by_problem - mean_value) ** 2).sum()) / (problems - 1)
    rest = x_SP - by_seed - by_problem + mean_value
    ms_rest = float((rest**2).sum()) / ((seeds - 1) * (problems - 1))
    squared = student_quantile(level, seeds - 1) ** 2 * max(0.0, ms_seed - ms_rest)
    squared += student_quantile(level, problems - 1) ** 2 * max(ms_problem, ms_rest)
    half = math.sqrt(squared / x_SP.size)
    return mean_value, mean_value - half, mean_value + half


@lru_cache
def student_quantile(level: float, freedom: int) -> float:
    """t with P(|T| ≤ t) = level, for Student's T with that many degrees of freedom.

    With T = √n·tan θ the density of θ is proportional to cos^{n−1} θ: its integral is summed on a fine grid.
    """
    theta = np.linspace(0.0, min(math.pi / 2, 10 / math.sqrt(freedom)), 20_001)
    density = np.cos(theta) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(float(np.interp(level, below / below[-1], theta)))


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
