"""avg@n, pass@k and maj@k against hand arithmetic and every subset; intervals; the figures of a pass."""

import itertools
import json
import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from fakes import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ttrl_pop.report.estimators import (
    BLOCK,
    avg_at_n,
    bootstrap_difference,
    bootstrap_interval,
    crossed_interval,
    maj_at_k,
    pass_at_k,
    student_quantile,
)
from ttrl_pop.report.gold import outcome_table
from ttrl_pop.report.measures import measure
from ttrl_pop.types import AnswerKey, Cluster, Group, Mind, Problem, Rollout, Tally

CASES = json.loads((ROOT / "tests/cases" / "measures.json").read_text())

groups = st.tuples(st.lists(st.integers(1, 4), max_size=5), st.integers(0, 3)).filter(
    lambda group: 1 <= sum(group[0]) + group[1] <= 11
)


def majority_over_all_subsets(sizes: list[int], correct: list[bool], abstained: int, k: int) -> Fraction:
    rollouts = [c for c, size in enumerate(sizes) for _ in range(size)] + [None] * abstained
    credit = Fraction(0)
    for subset in itertools.combinations(rollouts, k):
        votes = [subset.count(c) for c in range(len(sizes))]
        winners = [c for c, count in enumerate(votes) if count == max(votes) > 0]
        if winners:
            credit += Fraction(sum(correct[c] for c in winners), len(winners))
    return credit / math.comb(len(rollouts), k)


@pytest.mark.parametrize("case", CASES["pass_at_k"], ids=str)
def test_pass_at_k_by_hand(case):
    assert pass_at_k(case["n"], case["c"], case["k"]) == pytest.approx(case["value"])


@pytest.mark.parametrize("case", CASES["maj_at_k"], ids=lambda case: case["why"])
def test_maj_at_k_by_hand(case):
    value = maj_at_k(case["sizes"], case["correct"], case["abstained"], case["k"])
    assert value == pytest.approx(case["value"], abs=1e-12)


@given(n=st.integers(1, 9), data=st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_rollout(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_is_stable_where_the_binomials_overflow_a_float():
    n, c, k = 5000, 7, 900
    exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert pass_at_k(n, c, k) == pytest.approx(float(exact), rel=1e-12)


@settings(max_examples=150, deadline=None)
@given(group=groups, data=st.data())
def test_maj_at_k_is_the_mean_over_all_subsets(group, data):
    sizes, abstained = group
    k = data.draw(st.integers(1, sum(sizes) + abstained))
    correct = data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    expected = majority_over_all_subsets(sizes, correct, abstained, k)
    assert maj_at_k(sizes, correct, abstained, k) == pytest.approx(float(expected), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8), abstained=st.integers(0, 8), data=st.data())
def test_someone_wins_unless_only_abstentions_are_drawn(sizes, abstained, data):
    n = sum(sizes) + abstained
    k = data.draw(st.integers(1, n))
    credits = [maj_at_k(sizes, [c == gold for c in range(len(sizes))], abstained, k) for gold in range(len(sizes))]
    assert math.fsum(credits) == pytest.approx(1 - math.comb(abstained, k) / math.comb(n, k), abs=1e-11)


@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=8), abstained=st.integers(0, 9))
def test_a_majority_of_one_is_a_rollout(sizes, abstained):
    correct = [True] + [False] * (len(sizes) - 1)
    n = sum(sizes) + abstained
    assert maj_at_k(sizes, correct, abstained, 1) == pytest.approx(avg_at_n(sizes[0], n), rel=1e-12)


def test_maj_at_k_of_a_large_group_agrees_with_drawn_subsets():
    sizes, abstained, k = [500, 480, 60, *[1] * 60], 100, 32
    rng = np.random.Generator(np.random.Philox(key=1))
    draws = rng.multivariate_hypergeometric([*sizes, abstained], k, size=20_000)[:, :-1]
    tops = draws == draws.max(axis=1, keepdims=True)
    sampled = (tops[:, 1] / tops.sum(axis=1)).mean()
    correct = [c == 1 for c in range(len(sizes))]
    assert maj_at_k(sizes, correct, abstained, k) == pytest.approx(sampled, abs=0.012)


@pytest.mark.parametrize(
    "call",
    [
        lambda: avg_at_n(3, 2),
        lambda: avg_at_n(0, 0),
        lambda: pass_at_k(4, 5, 1),
        lambda: pass_at_k(4, 1, 0),
        lambda: maj_at_k([1], [True], 0, 0),
        lambda: maj_at_k([0], [True], 1, 1),
        lambda: maj_at_k([1, 2], [True], 0, 1),
        lambda: maj_at_k([1], [True], -1, 1),
    ],
)
def test_impossible_counts_are_refused(call):
    with pytest.raises(ValueError, match="got"):
        call()


def test_bootstrap_interval_degenerate_cases():
    assert bootstrap_interval([], seed=0) is None
    assert bootstrap_interval([None, None], seed=0) is None
    assert bootstrap_interval([None, 0.3], seed=0) == (0.3, 0.3)
    assert bootstrap_interval([0.5] * 9, seed=0) == (0.5, 0.5)


@pytest.mark.parametrize("size", [1, 3, 200, BLOCK + 1])
def test_bootstrap_samples_drawn_at_once_are_those_drawn_one_by_one(size):
    values = np.random.default_rng(size).random(size)
    rng = np.random.Generator(np.random.Philox(key=5))
    means = [values[rng.integers(size, size=size)].mean() for _ in range(300)]
    # As far out as Student's t puts the ends of an interval.
    z = math.sqrt(size / max(1, size - 1)) * student_quantile(0.95, max(1, size - 1))
    tail = NormalDist().cdf(-z) if size > 1 else 0.0
    assert bootstrap_interval([*values], seed=5, samples=300) == pytest.approx(
        tuple(np.quantile(means, [tail, 1 - tail]))
    )


@pytest.mark.parametrize(("size", "held"), [(5, 0.89), (8, 0.91), (24, 0.92)])
def test_bootstrap_intervals_hold_what_they_say_of_few_values(size, held):
    """Percentile intervals of 5 and 8 normal values hold the mean 84 and 86 times in a hundred."""
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(600):
        low, high = bootstrap_interval(rng.normal(size=size).tolist(), seed, samples=500)
        inside += low <= 0 <= high
    assert inside / 600 > held


def test_bootstrap_interval_has_the_width_of_the_normal_approximation():
    values = [float(i % 5 == 0) for i in range(400)]
    low, high = bootstrap_interval(values, seed=3, samples=4000)
    error = math.sqrt(0.2 * 0.8 / 400)
    assert low == pytest.approx(0.2 - 1.96 * error, abs=0.006)
    assert high == pytest.approx(0.2 + 1.96 * error, abs=0.006)
    narrow = bootstrap_interval(values, seed=3, samples=4000, level=0.5)
    assert low < narrow[0] < 0.2 < narrow[1] < high


@given(
    values=st.lists(st.none() | st.floats(-5, 5), min_size=1, max_size=12),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=40, deadline=None)
@example(values=[1.0, None, 2.0], seed=0)
def test_bootstrap_interval_lies_within_the_values_and_is_a_function_of_the_seed(values, seed):
    interval = bootstrap_interval(values, seed, samples=50)
    assert interval == bootstrap_interval(values, seed, samples=50)
    known = [value for value in values if value is not None]
    if known:
        low, high = interval
        assert min(known) - 1e-12 <= low <= high <= max(known) + 1e-12


def test_bootstrap_interval_depends_on_the_seed():
    values = [math.sin(i) for i in range(50)]
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_paired_difference_removes_the_spread_between_problems():
    before = {str(i): i / 40 for i in range(40)}
    after = {problem: value + 0.125 for problem, value in before.items()}
    mean, low, high = bootstrap_difference(before, after, seed=0)
    assert (mean, low, high) == pytest.approx((0.125, 0.125, 0.125))


def test_paired_difference_is_after_minus_before_over_problems_known_in_both():
    before = {"a": 0.5, "b": None, "c": 0.0, "only before": 1.0}
    after = {"c": 1.0, "b": 1.0, "a": 0.25, "only after": 0.0}
    mean, low, high = bootstrap_difference(before, after, seed=0)
    assert mean == pytest.approx((1.0 - 0.25) / 2)
    assert (low, high) == (-0.25, 1.0)
    assert bootstrap_difference({"a": None}, {"a": 1.0}, seed=0) is None


def test_outcome_table_counts_problems_known_in_both():
    before = {"a": False, "b": True, "c": True, "d": False, "e": False, "x": False, "y": False, "gone": True}
    after = {"a": True, "b": True, "c": False, "d": False, "e": True, "x": False, "y": False, "new": True}
    assert outcome_table(before, after) == {"learned": 2, "kept": 1, "lost": 1, "never": 3}


def tally_of(problem: str, answers: list[str | None], rewards: list[float] | None = None, truncated: int = 0) -> Tally:
    """A tally whose clusters are the distinct answers; the i-th completion has i + 1 tokens."""
    rollouts = tuple(
        Rollout(Mind(i), (1,), (2,) * (i + 1), (0.0,) * (i + 1), "", "length" if i < truncated else "stop", 0)
        for i in range(len(answers))
    )
    members = {a: tuple(i for i, b in enumerate(answers) if b == a) for a in answers if a is not None}
    ordered = sorted(members.items(), key=lambda item: (-len(item[1]), item[0]))
    clusters = tuple(Cluster(a, m, Fraction(len(m), len(answers))) for a, m in ordered)
    label = clusters[0].answer if clusters else None
    rewards_G = tuple(rewards or [float(a == label) for a in answers])
    return Tally(
        Group(Problem(problem, "?", 0), rollouts), tuple(answers), clusters, label, 0 if clusters else None, rewards_G
    )


def equal_as_numbers(answer: str | None, gold: str | None) -> bool:
    return answer is not None and gold is not None and Fraction(answer) == Fraction(gold)


PASS = [
    tally_of("right", ["4", "4", "4", "5"], truncated=1),
    tally_of("tied", ["1", "2", None, "1/2"]),
    tally_of("silent", [None] * 4),
    tally_of("unlabelled", ["7", "7", "7", "7"], rewards=[1.0, 1.0, 1.0, 1.0 + 1e-7]),
]
KEY = AnswerKey({"right": "4.0", "tied": "2", "silent": "3"})


def test_label_free_figures_are_means_over_problems():
    values = measure(PASS, KEY, equal_as_numbers, [2], seed=0).values
    assert values["agreement"] == pytest.approx((0.75 + 0.25 + 0 + 1) / 4)
    assert values["margin"] == pytest.approx((0.5 + 0 + 0 + 1) / 4)
    quarter = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4)
    assert values["answer_entropy"] == pytest.approx((quarter + 1 + 0 + 0) / 4)
    assert values["abstained"] == pytest.approx((0 + 0.25 + 1 + 0) / 4)
    assert values["unique_answers"] == pytest.approx((2 + 3 + 0 + 1) / 4)
    assert values["no_signal"] == pytest.approx(2 / 4)
    assert values["mean_length"] == pytest.approx(2.5)
    assert values["truncated"] == pytest.approx(1 / 16)


def test_figures_from_gold_leave_out_problems_without_it():
    measures = measure(PASS, KEY, equal_as_numbers, [2, 4, 8], seed=0)
    values = measures.values
    assert values["avg@4"] == pytest.approx((0.75 + 0.25 + 0) / 3)
    assert values["pass@2"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert values["maj@2"] == pytest.approx((0.5 * 1 + 0.5 * 0.5 + (2 / 6 * 0.5 + 1 / 6) + 0) / 3)
    assert values["maj@4"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert values["label_accuracy"] == pytest.approx(1 / 3), "the tie went to 1, silence is wrong"
    assert values["pass@8"] is None
    assert values["maj@8"] is None
    assert measures.intervals["maj@8"] is None
    assert measures.per_problem["unlabelled"]["avg@4"] is None
    assert measures.per_problem["silent"]["label_accuracy"] == 0.0
    assert list(measures.per_problem) == ["right", "tied", "silent", "unlabelled"]


def test_without_gold_its_figures_are_none_and_the_others_unchanged():
    with_gold = measure(PASS, KEY, equal_as_numbers, [2], seed=5)
    without = measure(PASS, AnswerKey(), equal_as_numbers, [2], seed=5)
    gold_keys = {"avg@4", "label_accuracy", "reward_accuracy", "pass@2", "maj@2"}
    assert without.values.keys() == with_gold.values.keys() == without.intervals.keys()
    # Of one mind there is one rollout.
    unknown = {*gold_keys, "same_mind"}
    assert {key for key, value in without.values.items() if value is None} == unknown
    assert {key for key, interval in without.intervals.items() if interval is None} == unknown
    for key in with_gold.values.keys() - gold_keys:
        assert without.values[key] == with_gold.values[key]
        assert without.intervals[key] == with_gold.intervals[key]


def test_the_grader_sees_each_distinct_answer_against_the_gold_one():
    seen = []

    def same(answer: str | None, gold: str | None) -> bool:
        seen.append((answer, gold))
        return equal_as_numbers(answer, gold)

    measure(PASS[:1], KEY, same, [1], seed=0)
    assert set(seen) == {("4", "4.0"), ("5", "4.0")}


def test_intervals_hold_their_means():
    measures = measure(PASS, KEY, equal_as_numbers, [1, 2], seed=0)
    known = {key: value for key, value in measures.values.items() if value is not None}
    assert measures.values.keys() - known.keys() == {"same_mind"}
    for key, value in known.items():
        low, high = measures.intervals[key]
        assert low - 1e-12 <= value <= high + 1e-12


def test_groups_of_different_size_are_not_named_after_one_of_them():
    mixed = [tally_of("a", ["1", "2"]), tally_of("b", ["1", "1", "1"])]
    values = measure(mixed, AnswerKey({"a": "1", "b": "1"}), equal_as_numbers, [3], seed=0).values
    assert values["avg@n"] == pytest.approx(0.75)
    assert values["pass@3"] == 1.0, "over the one group that is large enough"


def test_a_problem_is_measured_once_per_pass():
    with pytest.raises(ValueError, match="two of 'right'"):
        measure([PASS[0], PASS[0]], KEY, equal_as_numbers, [], seed=0)


def test_nothing_to_measure_is_none_everywhere():
    measures = measure([], KEY, equal_as_numbers, [1], seed=0)
    assert set(measures.values.values()) == {None}
    assert measures.per_problem == {}


@pytest.mark.parametrize(("freedom", "value"), [(1, 12.706205), (2, 4.302653), (5, 2.570582), (30, 2.042272)])
def test_quantiles_of_student_are_those_of_the_tables(freedom, value):
    assert student_quantile(0.95, freedom) == pytest.approx(value, rel=1e-5)


def test_student_becomes_normal():
    assert student_quantile(0.95, 10**6) == pytest.approx(1.959966, rel=1e-5)


def drawn(rng, seeds, problems, of_seed, of_problem, of_both):
    shape = [(seeds, 1), (1, problems), (seeds, problems)]
    return sum(s * rng.standard_normal(n) for s, n in zip((of_seed, of_problem, of_both), shape, strict=True))


def coverage(values, truth, repeats=4000):
    rng = np.random.Generator(np.random.Philox(key=5))
    found = (crossed_interval(values(rng)) for _ in range(repeats))
    return sum(low <= truth <= high for _, low, high in found) / repeats


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("effects", [(1, 1, 1), (0.2, 1, 1), (0, 1, 1), (1, 0.3, 1)], ids=str)
def test_intervals_over_seeds_and_problems_hold_what_they_promise(seeds, effects):
    share = coverage(lambda rng: drawn(rng, seeds, 24, *effects), 0.0)
    assert share == pytest.approx(0.95, abs=0.02)


def test_intervals_of_verdicts_hold_what_they_promise():
    def verdicts(rng):
        chances = rng.beta(2, 1, size=(1, 40))
        return (rng.random((4, 40)) < chances).astype(float)

    assert coverage(verdicts, 2 / 3) == pytest.approx(0.95, abs=0.02)


def test_paired_intervals_hold_what_they_promise():
    def difference(rng):
        problems = rng.standard_normal((1, 24)) * 3
        one, other = (problems + drawn(rng, 3, 24, 0.5, 0.5, 1) for _ in range(2))
        return other - one + 0.7

    assert coverage(difference, 0.7) == pytest.approx(0.95, abs=0.02)


def test_one_seed_is_the_interval_of_student():
    values = [0.1, 0.4, 0.3, 0.9]
    half = 3.182446 * np.std(values, ddof=1) / 2
    mean = sum(values) / 4
    assert crossed_interval(np.array([values])) == pytest.approx((mean, mean - half, mean + half), rel=1e-5)
    assert crossed_interval(np.array([[v] for v in values])) == pytest.approx(
        (mean, mean - half, mean + half), rel=1e-5
    )


def test_values_that_are_all_alike_have_an_interval_without_width():
    assert crossed_interval(np.zeros((3, 5))) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("shape", [(0, 0), (2, 0), (1, 1)])
def test_one_value_has_no_interval(shape):
    assert crossed_interval(np.zeros(shape)) is None


def test_seeds_and_problems_may_stand_in_any_order():
    rng = np.random.Generator(np.random.Philox(key=1))
    values = drawn(rng, 3, 7, 1, 1, 1)
    assert crossed_interval(values[::-1, ::-1]) == pytest.approx(crossed_interval(values), abs=1e-12)
