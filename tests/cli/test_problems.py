"""`ttrl-pop problems`: what a run knows of each problem."""

from pathlib import Path

import pytest
from cli.commands import GOLD, STEPS, rows_of, ttrl
from typer.testing import Result

from ttrl_pop.store.directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("elsewhere")]


def test_problems_shows_what_a_run_knows_of_each(place: Path, trained: tuple[Path, Result]) -> None:
    out = trained[0]
    rows = rows_of(ttrl("problems", out).stdout)
    assert {row["id"] for row in rows} == set(GOLD)
    assert sum(row["visits"] for row in rows) == STEPS * 4
    for row in rows:
        assert row["gold"] == GOLD[row["id"]]
        assert row["correct"] == (row["label"] == row["gold"])
        assert 0 <= row["flip_rate"] <= 1
        assert row["weight"] == 1.0
    first = rows_of(ttrl("problems", RunDirectory(out).checkpoint(2)).stdout)
    assert sum(row["visits"] for row in first) == 2 * 4
    assert "neither a run directory" in ttrl("problems", place, code=2).stderr
