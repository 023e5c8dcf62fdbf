"""Rows of a study: means, differences and intervals by hand."""

from typing import Any

import numpy as np
import pytest

from ttrl_pop.report.estimators import crossed_interval
from ttrl_pop.study.figures import Figures
from ttrl_pop.study.rows import study_rows


def figures(*accuracies: float | None, tokens: int = 10, **changes: Any) -> Figures:
    rows = {f"p{i}": {"accuracy": value} for i, value in enumerate(accuracies)}
    right = {problem: bool(row["accuracy"]) for problem, row in rows.items() if row["accuracy"] is not None}
    return Figures(rows, changes.get("before", {}), right, tokens, 4, 2.5, changes.get("entropy"))


def rows_of(**results: list[Figures]) -> list[dict[str, Any]]:
    return list(study_rows("s", results))


def test_a_row_for_each_arm_then_one_for_each_difference() -> None:
    found = rows_of(a=[figures(0.0, 1.0)], b=[figures(1.0, 1.0)], c=[figures(0.5, 0.5)])
    assert [(row["kind"], row["arm"], row.get("to")) for row in found] == [
        *(("arm", arm, None) for arm in "abc"),
        *(("difference", arm, "a") for arm in "bc"),
    ]
    assert [row["accuracy"] for row in found] == [0.5, 1.0, 0.5, 0.5, 0.0]


def test_differences_are_paired_by_seed_and_problem() -> None:
    one, other = [[0.1, 0.9], [0.3, 0.2]], [[0.2, 0.8], [0.9, 0.4]]
    found = rows_of(a=[figures(*row) for row in one], b=[figures(*row) for row in other])[-1]
    middle, low, high = crossed_interval(np.array(other) - np.array(one)) or (0, 0, 0)
    assert found["accuracy"] == pytest.approx(middle)
    assert found["intervals"]["accuracy"] == pytest.approx([low, high])


def test_arms_that_are_alike_differ_by_nothing() -> None:
    runs = [figures(0.1, 0.7, 0.3), figures(0.2, 0.9, 0.5)]
    found = rows_of(a=runs, b=runs)[-1]
    assert (found["accuracy"], found["intervals"]["accuracy"]) == (0.0, [0.0, 0.0])


def test_a_problem_that_is_not_known_at_every_seed_is_left_out() -> None:
    found = rows_of(a=[figures(0.0, 1.0, None), figures(0.0, 1.0, 1.0)])[0]
    assert (found["accuracy"], found["problems"]) == (0.5, 3)


def test_what_no_problem_has_is_no_figure() -> None:
    found = rows_of(a=[figures(None, None)])[0]
    assert "accuracy" not in found
    assert "labels" not in found


def test_labels_are_counted_over_all_seeds() -> None:
    runs = [figures(1.0, 0.0, before={"p0": False, "p1": True}), figures(1.0, 1.0, before={"p0": False, "p1": True})]
    assert rows_of(a=runs)[0]["labels"] == {"learned": 2, "kept": 1, "lost": 1, "never": 0}


def test_tokens_are_those_of_a_run() -> None:
    assert rows_of(a=[figures(1.0, 0.0, tokens=10), figures(1.0, 0.0, tokens=20)])[0]["tokens"] == 15
