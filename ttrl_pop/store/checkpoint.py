"""The run directory: atomic saves, exact resume.

    RUN/  config.toml  problems.jsonl  gold.jsonl  identity.json  calibration.json  baseline.jsonl
          metrics.jsonl  rollouts/step_0001.jsonl.zst
          checkpoints/step_0010/{adapter/, population.safetensors, optimizer.safetensors, problems.jsonl, state.json,
                                 MANIFEST}
          best → checkpoints/step_0010   answers.jsonl

Every file is written under a temporary name, synced and renamed. A checkpoint is a folder renamed into place whose
MANIFEST, written last, lists the hash of every file: without it, or with another hash, it is not a checkpoint and the
one before counts.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peft
import safetensors.torch
from torch import Tensor

from ttrl_pop.errors import CheckpointError, UsageError
from ttrl_pop.model.policy import Policy
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.store.files import sync_file, sync_folder, write_atomic

FORMAT = 3

PROBLEMS = "problems.jsonl"
"""State of each problem, in a checkpoint."""


def save(
    run: RunDirectory,
    step: int,
    policy: Policy,
    optimizer: dict[str, Tensor],
    problems: Iterable[dict[str, Any]],
    state: dict[str, Any],
) -> Path:
    """Write the checkpoint of `step`; it appears whole or not at all. `problems` has a row for each problem seen."""
    target = run.checkpoint(step)
    work = run.checkpoints / f".saving-{target.name}"
    shutil.rmtree(work, ignore_errors=True)
    (work / "adapter").mkdir(parents=True)
    if policy.adapter is not None:
        # The vocabulary is never resized; left to itself, peft asks the hub whether it was.
        policy.adapter.save_pretrained(work / "adapter", save_embedding_layers=False)
        # peft's model card is an empty form, with the model's local path in it.
        (work / "adapter" / "README.md").unlink(missing_ok=True)
        _sort_targets(work / "adapter" / "adapter_config.json")
    safetensors.torch.save_file(
        {name: value.detach().cpu().contiguous() for name, value in policy.population.state_dict().items()},
        work / "population.safetensors",
    )
    safetensors.torch.save_file(
        {name: value.detach().cpu().contiguous() for name, value in optimizer.items()},
        work / "optimizer.safetensors",
    )
    whole = {"format": FORMAT, "step": step, "policy_version": policy.version, **state}
    (work / "state.json").write_text(json.dumps(whole, indent=1) + "\n")
    (work / PROBLEMS).write_text("".join(json.dumps(row) + "\n" for row in problems))
    files = sorted(file for file in work.rglob("*") if file.is_file())
    manifest = {str(file.relative_to(work)): _hash(file) for file in files}
    for file in files:
        sync_file(file)
    write_atomic(work / "MANIFEST", (json.dumps(manifest, indent=1) + "\n").encode())
    shutil.rmtree(target, ignore_errors=True)
    work.rename(target)
    sync_folder(run.checkpoints)
    return target


def latest(run: RunDirectory) -> int | None:
    """Step of the newest whole checkpoint, or None."""
    for step in reversed(_steps(run)):
        if is_whole(run.checkpoint(step)):
            return step
    return None


def is_whole(folder: Path) -> bool:
    """Whether the MANIFEST is there and every file that it lists has the hash that it says."""
    manifest = folder / "MANIFEST"
    if not manifest.is_file():
        return False
    try:
        listed = json.loads(manifest.read_bytes())
    except (ValueError, RecursionError):
        return False
    if not isinstance(listed, dict) or not listed:
        return False
    return all((folder / name).is_file() and _hash(folder / name) == digest for name, digest in listed.items())


def load_state(folder: Path) -> dict[str, Any]:
    """state.json of a checkpoint.

    Raises:
        CheckpointError: the folder is not a whole checkpoint, or of another format.
    """
    if not is_whole(folder):
        raise CheckpointError(f"{folder} is not a whole checkpoint (no MANIFEST, or a file that differs from it)")
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    if state["format"] != FORMAT:
        raise CheckpointError(f"{folder} has checkpoint format {state['format']}; this version reads {FORMAT}")
    return state


def load_policy(folder: Path, policy: Policy) -> None:
    """Put a checkpoint's adapter, population and version into `policy`.

    Raises:
        CheckpointError: not a whole checkpoint, or its tensors do not fit this policy.
    """
    state = load_state(folder)

    weights = safetensors.torch.load_file(folder / "adapter" / "adapter_model.safetensors")
    result = peft.set_peft_model_state_dict(policy.adapter, weights)
    if result.unexpected_keys:
        raise CheckpointError(f"{folder}: adapter does not fit the model (unexpected {result.unexpected_keys[0]})")
    _load_population(folder, policy)
    policy.version = state["policy_version"]


def load_start(folder: Path, policy: Policy) -> None:
    """Give `policy` the population that the run of this checkpoint began with.

    Raises:
        CheckpointError: its tensors do not fit this policy.
    """
    _load_population(folder, policy)
    policy.population.restart()


def newest(run: RunDirectory) -> Path:
    """Folder of the newest whole checkpoint.

    Raises:
        UsageError: there is none.
    """
    step = latest(run)
    if step is None:
        raise UsageError(f"{run.path}: no whole checkpoint in this run; go on with it by ttrl-pop run --resume")
    return run.checkpoint(step)


def load_optimizer(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = safetensors.torch.load_file(folder / "optimizer.safetensors")
    return tensors


def point_best(run: RunDirectory, step: int) -> None:
    """Let `best` point to the checkpoint of `step`, atomically."""
    temporary = run.path / ".best.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(Path("checkpoints") / run.checkpoint(step).name)
    os.replace(temporary, run.path / "best")


def prune(run: RunDirectory, keep: int, best: int | None) -> None:
    """Remove what an interrupted save left, and all checkpoints but the newest `keep` whole ones and the best.

    Damaged ones do not count as kept; they go once `keep` whole ones are newer.
    """
    for leftover in run.checkpoints.glob(".saving-*"):
        shutil.rmtree(leftover)
    kept = 0
    for step in reversed(_steps(run)):
        if kept >= keep and step != best:
            # The MANIFEST goes first: a half-removed checkpoint must not look whole.
            (run.checkpoint(step) / "MANIFEST").unlink(missing_ok=True)
            shutil.rmtree(run.checkpoint(step))
        elif kept < keep:
            kept += is_whole(run.checkpoint(step))


def _sort_targets(config: Path) -> None:
    """Order the names of the layers with an adapter: peft writes a set of them, in another order in each process."""
    row = json.loads(config.read_text())
    # A pattern stays as it is.
    if isinstance(row["target_modules"], list):
        row["target_modules"].sort()
        config.write_text(json.dumps(row, indent=2, sort_keys=True))


def _load_population(folder: Path, policy: Policy) -> None:
    try:
        policy.population.load_state_dict(safetensors.torch.load_file(folder / "population.safetensors"))
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: population does not fit: {error}") from error


def _steps(run: RunDirectory) -> list[int]:
    """Steps that have a checkpoint folder, ascending; a copy that a user made beside them has another name."""
    numbers = (folder.name.removeprefix("step_") for folder in run.checkpoints.glob("step_*"))
    return sorted(int(number) for number in numbers if number.isdecimal())


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
