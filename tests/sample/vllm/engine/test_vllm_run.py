"""Whole commands with `--backend vllm`, in processes of their own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes import PROBLEMS, ROOT
from vllm_models import Models

TINY = "--set backend_options.cpu_cache=0.1 --set backend_options.max_model_len=128 --set vote.grader=exact"


def command(text: str) -> list[str]:
    return [sys.executable, "-m", "ttrl_pop", *text.split()]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def run(text: str, folder: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(text), cwd=folder, env=environment(), capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == code, done.stderr
    return done


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def place(tmp_path: Path, models: Models) -> Path:
    problems = "".join(json.dumps({"id": p.id, "prompt": p.prompt}) + "\n" for p in PROBLEMS)
    (tmp_path / "problems.jsonl").write_text(problems)
    (tmp_path / "model").symlink_to(models.path("llama"))
    return tmp_path


@pytest.mark.slow
def test_the_demo_model_improves_without_labels(tmp_path: Path) -> None:
    """The demo's run cut short, as in test_demo.py; its whole is in dev/LOG.md."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    run(
        "run examples/times-table.jsonl --config examples/times-table.toml --gold examples/times-table.gold.jsonl "
        "--backend vllm --set population.options.scope=sequence --steps 1 --minds 6 --out out --quiet",
        tmp_path,
    )
    before, after = (rows(tmp_path / "out" / name) for name in ("baseline.jsonl", "answers.jsonl"))
    mean = [sum(row["accuracy"] for row in part) / 24 for part in (before, after)]
    assert 0.3 < mean[0] < 0.7
    assert mean[1] > mean[0] + 0.1
    (row,) = rows(tmp_path / "out" / "metrics.jsonl")
    assert row["learn/logprob_gap"] < 1e-4
    config = (tmp_path / "out" / "config.toml").read_text()
    assert 'backend = "vllm"' in config
    assert "tis = true" in config
    assert "max_logprob_gap = 0.001" in config


TRAIN = (
    "run problems.jsonl --model model --backend vllm --minds 3 --steps {steps} --problems-per-step 6 --out out --quiet "
    "--set sampling.max_new_tokens=40 --set learn.mask_truncated=false --set answers=false "
    "--set population.options.sigma=0.05 --set backend_options.own_process=true --lr 1e-3 " + TINY
)


def wait_for(what: Any, seconds: float = 120) -> Any:
    """The first true value of `what()`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"nothing came in {seconds} s")


def begun(process: subprocess.Popen[str], folder: Path) -> list[psutil.Process]:
    """The engine's processes, once two steps are done and a third is under way."""

    def steps() -> bool:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        metrics = folder / "out" / "metrics.jsonl"
        return metrics.exists() and len(metrics.read_text().splitlines()) >= 2

    wait_for(steps)
    return psutil.Process(process.pid).children(recursive=True)


def start(place: Path, steps: int) -> subprocess.Popen[str]:
    text = TRAIN.format(steps=steps)
    return subprocess.Popen(command(text), cwd=place, env=environment(), stderr=subprocess.PIPE, text=True)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.slow
def test_an_engine_killed_in_a_step_ends_the_run_with_a_checkpoint_that_resumes(place: Path) -> None:
    process = start(place, 500)
    children = begun(process, place)
    engines = [p for p in children if "EngineCore" in " ".join(p.cmdline()) or "spawn_main" in " ".join(p.cmdline())]
    assert engines
    for engine in engines:
        engine.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert "vLLM's process died" in errors
    assert "Traceback" not in errors
    wait_for(lambda: gone(children), 20)
    done = len(rows(place / "out" / "metrics.jsonl"))
    run(f"run --resume out --steps {done + 1} --quiet", place)
    assert len(rows(place / "out" / "metrics.jsonl")) == done + 1


@pytest.mark.slow
def test_a_learner_that_is_killed_leaves_no_engine_behind(place: Path) -> None:
    process = start(place, 500)
    children = begun(process, place)
    assert children
    process.kill()
    process.wait(20)
    wait_for(lambda: gone(children), 20)


@pytest.mark.slow
def test_two_workers_share_the_weights(place: Path) -> None:
    done = run(TRAIN.format(steps=2) + " --set backend_options.tensor_parallel=2", place)
    assert done.returncode == 0
    gaps = [row["learn/logprob_gap"] for row in rows(place / "out" / "metrics.jsonl")]
    assert any(gaps), "a step must have learned"
    assert all(gap is None or gap < 1e-3 for gap in gaps)
