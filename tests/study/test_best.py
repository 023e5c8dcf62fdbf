"""Two ways to choose `best`, side by side on the runs of a study."""

import json
from pathlib import Path
from typing import Any

import pytest

from dev.studies import best


def row(
    step: int, agreement: float, first: float, right: float, flips: float | None = 0.0, **more: str
) -> dict[str, Any]:
    names = ("vote/agreement", "vote/first_label", "rollout/accuracy", "vote/flip_rate")
    figures = dict(zip(names, (agreement, first, right, flips), strict=True))
    return {"step": step, **figures, "vote/label_accuracy": right / 2, **more}


def test_each_choice_is_made_among_trained_checkpoints_without_an_alarm() -> None:
    base = row(1, 1.0, 1.0, 0.9, None)
    rows = [base, row(2, 0.6, 0.6, 0.7), row(3, 0.8, 0.8, 0.4, 0.5), row(4, 0.9, 0.9, 0.1, alarm="all the same")]
    assert [found["step"] for found in best.chosen(rows)] == [2, 3]


def test_differences_are_those_of_runs_by_hand(tmp_path: Path) -> None:
    gains = {"coin-0": 0.2, "coin-1": 0.4, "a-b-0": 0.0, "a-b-1": 0.0, "alone-0": 1.0}
    for name, gain in gains.items():
        rows = [row(1, 0.5, 0.5, 0.5, None), row(2, 0.6, 0.6, 0.5 + gain), row(3, 0.8, 0.1, 0.5)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    (tmp_path / "base-0").mkdir()
    found = {line["arm"]: line for line in map(json.loads, best.lines([str(tmp_path)]))}
    assert [*found] == ["a-b", "coin", "all"]
    coin = found["coin"]["accuracy"]
    assert coin["difference"] == pytest.approx(0.3)
    # Half the width: t with one degree of freedom, 12.706, times 0.1 · √2 over √2.
    assert coin["interval"] == pytest.approx([0.3 - 1.2706, 0.3 + 1.2706], abs=1e-3)
    assert found["coin"]["label_accuracy"]["difference"] == pytest.approx(0.15)
    assert (found["coin"]["runs"], found["coin"]["other_step"], found["all"]["runs"]) == (2, 2, 5)
