"""A run killed at any moment and resumed ends as an undisturbed one, to the byte."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from fakes import PROBLEMS, save_tiny

from ttrl_pop.store import checkpoint, files
from ttrl_pop.store.directory import RunDirectory

pytestmark = pytest.mark.slow

STEPS = 12
SETTINGS = {
    "steps": STEPS,
    "problems_per_step": 4,
    "baseline": True,
    "problems.form": "raw",
    "population.minds": 3,
    "population.samples_per_mind": 2,
    "population.options": {"sigma": "auto", "target_kl": 0.2, "target_flips": 0.3, "decay": 0.9},
    "sampling.max_new_tokens": 4,
    "sampling.temperature": 2.0,
    "learn.lr": 1e-2,
    "learn.updates_per_step": 2,
    "learn.schedule": "cosine",
    "learn.warmup_steps": 2,
    "learn.mask_truncated": False,
    "learn.kl": 0.01,
    "learn.kl_prior": 0.01,
    "learn.lora.rank": 2,
    "vote.labels": "average",
    "vote.weight": "mind",
    "vote.grader": "exact",
    "guard.flip_scaling": True,
    "guard.keep_minorities": True,
    "guard.skip_risky": True,
}


def work(model: str, problems: str, out: str) -> None:
    """One process of the run: begin it, or go on with it."""
    import torch

    from ttrl_pop.cli import inputs, opening
    from ttrl_pop.cli import run as commands
    from ttrl_pop.cli.given import Given
    from ttrl_pop.read.rows import unsaid

    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    path = Path(out)
    if (path / "identity.json").exists():
        prepared = opening.prepare_resume(path, None, None, Given())
    else:
        # Killed before the run existed: what is there is an incomplete folder.
        for leftover in path.glob("*") if path.exists() else ():
            leftover.unlink()
        given = Given(overrides={"model": model, **SETTINGS})
        prepared = opening.create_run(inputs.for_run(problems, None, path, given, unsaid))
    commands.run(lambda stage: prepared, quiet=True)


@pytest.fixture(scope="module")
def context() -> Any:
    # Children are forked from a server that has done the imports: ten processes cost no ten imports.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ttrl_pop.cli.run"])
    return context


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("resume")
    problems = folder / "problems.jsonl"
    problems.write_text("".join(json.dumps({"id": p.id, "prompt": p.prompt, "answer": "56"}) + "\n" for p in PROBLEMS))
    return str(save_tiny(folder / "model")), str(problems)


def finish(context: Any, place: tuple[str, str], out: Path) -> None:
    process = context.Process(target=work, args=(*place, str(out)))
    process.start()
    process.join(120)
    assert process.exitcode == 0


def content(out: Path) -> dict[str, Any]:
    """Everything that a run ends with; times aside."""
    run = RunDirectory(out)
    last = run.checkpoint(STEPS)
    kept = [
        last / "adapter" / "adapter_model.safetensors",
        last / "population.safetensors",
        last / "optimizer.safetensors",
    ]
    kept += [last / "state.json", last / "problems.jsonl", run.answers, run.baseline]
    metrics = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in files.read_lines(run.metrics)]
    return {
        "files": [file.read_bytes() for file in kept],
        "metrics": metrics,
        "rollouts": [list(files.read_lines(run.rollouts(step))) for step in range(1, STEPS + 1)],
        "best": (out / "best").resolve().name,
        "checkpoints": sorted(folder.name for folder in run.checkpoints.iterdir()),
    }


@pytest.fixture(scope="module")
def undisturbed(context: Any, place: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    # The server's imports are no part of a run's duration.
    first = context.Process(target=print)
    first.start()
    first.join()
    start = time.perf_counter()
    finish(context, place, out)
    assert [row["step"] for row in files.read_lines(RunDirectory(out).metrics)] == list(range(1, STEPS + 1))
    return out, time.perf_counter() - start


def test_the_same_seed_twice_is_the_same_run(
    context: Any, place: tuple[str, str], undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    finish(context, place, tmp_path / "again")
    assert content(tmp_path / "again") == content(undisturbed[0])


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(
    context: Any, place: tuple[str, str], undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    expected, duration = undisturbed
    out = tmp_path / "killed"
    run = RunDirectory(out)
    chance = random.Random()
    steps_at_kill = []
    for kill in range(10):
        process = context.Process(target=work, args=(*place, str(out)))
        process.start()
        # Spread over the run, so that all ten find it alive; the moment within a step is left to chance.
        deadline = time.monotonic() + 120
        while (checkpoint.latest(run) or 0) < kill and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, duration / STEPS))
        assert process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        steps_at_kill.append(checkpoint.latest(run))
    finish(context, place, out)
    assert content(out) == content(expected), f"killed at {steps_at_kill}"


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(1, 14))
def test_a_kill_at_each_write_of_a_step_changes_nothing(
    context: Any, place: tuple[str, str], undisturbed: tuple[Path, float], tmp_path: Path, moment: int
) -> None:
    out = tmp_path / "killed"
    process = context.Process(target=die_at_sync, args=(*place, str(out), 60 + moment))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    finish(context, place, out)
    assert content(out) == content(undisturbed[0])


def die_at_sync(model: str, problems: str, out: str, moment: int) -> None:
    """Run until the `moment`-th time that something is synced to disk, and die there."""
    calls = 0
    original = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        original(descriptor)

    os.fsync = fsync
    work(model, problems, out)
