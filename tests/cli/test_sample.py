"""`ttrl-pop sample`: every rollout, as soon as it is written."""

import sys
from pathlib import Path

import pytest
from cli.commands import Reader, Watched, rows_of, ttrl
from fakes import PROBLEMS
from typer.testing import Result

from ttrl_pop.cli.app import app

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("elsewhere")]


def test_sample_prints_every_rollout(place: Path) -> None:
    rows = rows_of(
        ttrl("sample", place / "p.jsonl", "--config", place / "c.toml", "--samples-per-mind", 2, "--quiet").stdout
    )
    assert [(row["id"], row["rollout"]) for row in rows] == [(p.id, i) for p in PROBLEMS for i in range(6)]
    assert all(len(row["completion_ids"]) == len(row["logprobs"]) for row in rows)
    assert "reward" not in rows[0]


def test_sample_of_a_run_writes_what_the_run_answered(place: Path, trained: tuple[Path, Result]) -> None:
    rows = rows_of(ttrl("sample", place / "p.jsonl", "--run", trained[0], "--quiet").stdout)
    for answer in rows_of(trained[1].stdout):
        given = [row["answer"] for row in rows if row["id"] == answer["id"] and row["answer"] is not None]
        assert sum(answer["votes"].values()) == len(given)


def test_sample_prints_a_problem_before_the_last_is_sampled(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Watched.events.clear()
    monkeypatch.setattr(sys, "stdout", Reader())
    arguments = ["sample", place / "p.jsonl", "--config", place / "c.toml", "--quiet"]
    with pytest.raises(SystemExit):
        app([*map(str, arguments), "--backend", "cli.commands:Watched"])
    assert Watched.events.count("rollout") == 18
    assert Watched.events.index("3 lines") < 12, "three rollouts of the first problem, before the last is sampled"
