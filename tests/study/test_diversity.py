"""Diversity of texts: figures by hand, and curves at equal coherence."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ttrl_pop.report.estimators import crossed_interval
from ttrl_pop.study.diversity import (
    common,
    distinct,
    diversity,
    equal_coherence,
    interpolated,
    mean_distance,
    projected,
)
from ttrl_pop.study.figures import Figures

CURVES = {"heat": ("start", "warm", "hot"), "minds": ("start", "noisy")}


def figures(*rows: tuple[float, float]) -> Figures:
    """A run with (coherence, distance) of each problem."""
    per_problem = {
        f"p{i}": {"coherence": float(c), "distance": float(d), "distinct-2": d / 2} for i, (c, d) in enumerate(rows)
    }
    return Figures(per_problem, {}, {}, 10, 4, 2.5, None)


def text(problem: str, embedding: list[float], coherence: float | None = -1.0, words: str = "a b") -> dict[str, Any]:
    return {"id": problem, "text": words, "coherence": coherence, "embedding": embedding}


def test_distance_is_the_mean_over_pairs() -> None:
    # Cosines of the pairs: 0, -1 and 0.
    assert mean_distance(np.array([[2.0, 0.0], [0.0, 0.5], [-1.0, 0.0]])) == pytest.approx(4 / 3)
    assert mean_distance(np.ones((5, 3))) == pytest.approx(0)
    assert mean_distance(np.ones((1, 3))) is None
    vectors = np.random.default_rng(0).normal(size=(6, 4))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [1 - unit[i] @ unit[j] for i in range(6) for j in range(i)]
    assert mean_distance(vectors) == pytest.approx(np.mean(pairs))


def test_distinct_counts_word_grams_over_all_answers_to_a_problem() -> None:
    texts = ["The cat sat", "the cat ran off"]
    assert distinct(texts, 1) == 5 / 7
    assert distinct(texts, 2) == 4 / 5
    assert distinct(texts, 3) == 1
    assert distinct(["one"], 2) is None


def test_figures_are_those_of_each_problem() -> None:
    rows = [text("a", [1, 0]), text("b", [1, 0]), text("a", [0, 1], -3.0), text("b", [1, 0], None)]
    found = diversity(rows)
    assert found["a"]["distance"] == pytest.approx(1)
    assert found["b"]["distance"] == pytest.approx(0)
    assert (found["a"]["coherence"], found["b"]["coherence"]) == (-2.0, -1.0)
    assert found["a"]["distinct-1"] == 0.5


def test_a_curve_is_interpolated_between_the_arms_around_a_coherence() -> None:
    results = {
        "start": [figures((-1, 0.1), (-2, 0.3))],
        "warm": [figures((-2, 0.3), (-3, 0.5))],
        "hot": [figures((-4, 0.8), (-5, 0.8))],
        "noisy": [figures((-3, 0.9), (-4, 0.7))],
    }
    # Arms stand at -1.5, -2.5, -4.5 with distances 0.2, 0.4, 0.8, and at -3.5 with 0.8.
    for coherence, heat, minds in ((-2.0, 0.3, 0.35), (-2.5, 0.4, 0.5), (-3.5, 0.6, 0.8)):
        assert interpolated(CURVES["heat"], "distance", coherence, results).mean() == pytest.approx(heat)
        assert interpolated(CURVES["minds"], "distance", coherence, results).mean() == pytest.approx(minds)
    assert common(*CURVES.values(), results) == pytest.approx([-3.0, -2.5, -2.0])
    rows = list(equal_coherence("s", CURVES, results))
    assert [(row["arm"], row["to"], row["kind"]) for row in rows] == [("minds", "heat", "equal coherence")] * 3
    assert [row["coherence"] for row in rows] == pytest.approx([-3.0, -2.5, -2.0])
    assert [row["distance"] for row in rows] == pytest.approx([0.15, 0.1, 0.05])
    assert [row["distinct-2"] for row in rows] == pytest.approx([0.075, 0.05, 0.025])
    assert rows[1]["distance of heat"] == pytest.approx(0.4)


def test_the_order_in_which_a_curve_names_its_arms_is_nothing() -> None:
    results = {"a": [figures((-1, 0.1))], "b": [figures((-2, 0.3))], "c": [figures((-4, 0.8))]}
    one, other = (interpolated(order, "distance", -3.0, results) for order in (("a", "b", "c"), ("c", "a", "b")))
    assert one == other == pytest.approx(0.55)


def test_what_is_uncertain_of_the_coherence_is_in_the_interval() -> None:
    # Distance follows coherence to the letter: at one coherence nothing is left to differ between problems.
    chance = np.random.default_rng(3)
    results = {
        arm: [figures(*((c, -0.2 * c) for c in mean + chance.normal(size=9))) for _ in range(2)]
        for arm, mean in (("start", -1.0), ("warm", -3.0), ("hot", -5.0), ("noisy", -4.5))
    }
    table = interpolated(CURVES["heat"], "distance", -2.0, results)
    assert table == pytest.approx(np.full((2, 9), 0.4))
    (_, low, high) = crossed_interval(table) or (0, 0, 0)
    assert high - low < 1e-9


def test_the_interval_holds_the_true_difference() -> None:
    # Minds are truly 0.1 further apart than heat at any coherence; seeds and problems differ, and coherence with them.
    chance = np.random.default_rng(5)
    held = 0
    for _ in range(100):
        problems = chance.normal(size=20)

        def run(level: float, gap: float, of: np.ndarray[Any, Any] = problems) -> Figures:
            shift = chance.normal() * 0.1
            coherence = level + shift + 0.3 * of + chance.normal(size=20) * 0.2
            noise = chance.normal(size=20) * 0.05
            return figures(*zip(coherence, gap - 0.2 * coherence + 0.1 * of + noise, strict=True))

        results = {
            arm: [run(level, gap) for _ in range(3)]
            for arm, level, gap in (
                ("start", -1, 0),
                ("warm", -2, 0),
                ("hot", -3, 0),
                ("few", -1, 0.1),
                ("noisy", -3, 0.1),
            )
        }
        curves = {"heat": ("start", "warm", "hot"), "minds": ("few", "noisy")}
        middle = list(equal_coherence("s", curves, results))[1]
        low, high = middle["intervals"]["distance"]
        held += low <= 0.1 <= high
    assert held >= 88


def test_curves_without_a_coherence_in_common_are_not_compared() -> None:
    results = {
        "start": [figures((-1, 0.1)), figures((-1, 0.1))],
        "warm": [figures((-2, 0.3)), figures((-2, 0.3))],
        "few": [figures((-3, 0.4)), figures((-1.5, 0.4))],
        "noisy": [figures((-4, 0.8)), figures((-4, 0.8))],
    }
    assert list(equal_coherence("s", {"heat": ("start", "warm"), "minds": ("few", "noisy")}, results)) == []


def test_a_problem_without_a_figure_in_one_run_is_out_of_all_comparisons() -> None:
    results = {
        arm: [figures((c, 0.1), (c, 0.2))] for arm, c in (("start", -1), ("warm", -2), ("hot", -3), ("noisy", -3))
    }
    broken = results["hot"][0]
    rows = {**broken.per_problem, "p1": {**broken.per_problem["p1"], "coherence": None}}
    results["hot"] = [replace(broken, per_problem=rows)]
    assert interpolated(CURVES["minds"], "distance", -2.0, results).shape == (1, 1)


def test_places_are_those_of_answers_and_not_of_questions() -> None:
    rows = {
        "one": [text("a", [9, 0, 1]), text("b", [0, 9, 1])],
        "other": [text("a", [9, 0, -1]), text("b", [0, 9, -1])],
    }
    found = projected(rows, 10)
    assert found == {"one": [[1.0, 0.0]] * 2, "other": [[-1.0, 0.0]] * 2}
    assert projected({"one": [text("a", [1, 0, 0])]}, 10) == {"one": [[0.0, 0.0]]}
    assert len(projected(rows, 1)["one"]) == 1
