"""The run directory: atomic saves, exact resume.

    RUN/  config.toml  problems.jsonl  gold.jsonl  identity.json  environment.json  calibration.json  baseline.jsonl
          fit/  run.log  metrics.jsonl  rollouts/step_0001.jsonl.zst
          checkpoints/step_0010/{adapter/, population.safetensors, optimizer.safetensors, problems.jsonl, metrics.jsonl,
                                 state.json, MANIFEST}
          best → checkpoints/step_0010   answers.jsonl

Every file is written under a temporary name, synced and renamed. A checkpoint is a folder renamed into place whose
MANIFEST, written last, lists the seal of every file: without it, or with another seal, it is not a checkpoint and the
one before counts. What a damaged file means elsewhere: `ttrl_pop.store.reading`.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import peft
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ttrl_pop.errors import CheckpointError, DamagedError, TtrlPopError, UsageError
from ttrl_pop.model.adapter_files import save_adapter
from ttrl_pop.model.policy import Policy
from ttrl_pop.store import identity, reading
from ttrl_pop.store.directory import MANIFEST, RunDirectory
from ttrl_pop.store.files import encode_lines, sync_file, sync_folder, write_atomic

FORMAT = 5

PROBLEMS = "problems.jsonl"
"""State of each problem, in a checkpoint."""

METRICS = "metrics.jsonl"
"""Rows of RUN/metrics.jsonl up to the checkpoint's step, in a checkpoint."""

WEIGHTS = "adapter/adapter_model.safetensors"

PARTS = ("population.safetensors", "optimizer.safetensors", "state.json", PROBLEMS, METRICS)
"""Files that every checkpoint has; beside them it may have those of an adapter."""

_NUMBER = re.compile(r"[0-9]{1,18}")


def save(
    run: RunDirectory,
    step: int,
    policy: Policy,
    optimizer: dict[str, Tensor],
    problems: Iterable[dict[str, Any]],
    metrics: Iterable[dict[str, Any]],
    state: dict[str, Any],
) -> Path:
    """Write the checkpoint of `step`; it appears whole or not at all.

    Args:
        problems: a row for each problem seen.
        metrics: a row for each step done.
    """
    target = run.checkpoint(step)
    work = run.checkpoints / f".saving-{target.name}"
    _remove(work)
    (work / "adapter").mkdir(parents=True)
    if policy.adapter is not None:
        save_adapter(policy.adapter, work / "adapter")
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
    for name, rows in ((PROBLEMS, problems), (METRICS, metrics)):
        (work / name).write_bytes(encode_lines(work / name, rows))
    files = sorted(file for file in work.rglob("*") if file.is_file())
    manifest = {str(file.relative_to(work)): reading.seal_of(file) for file in files}
    for file in files:
        sync_file(file)
    write_atomic(work / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    _remove(target)
    work.rename(target)
    sync_folder(run.checkpoints)
    return target


def latest(run: RunDirectory, notice: Callable[[str], None] = lambda text: None) -> int | None:
    """Step of the newest whole checkpoint, or None. `notice` is told of newer ones that are not whole."""
    for step in reversed(steps(run)):
        if (found := flaw(run.checkpoint(step))) is None:
            return step
        notice(f"{run.checkpoint(step)} is not a whole checkpoint ({found}); the one before is taken")
    return None


def flaw(folder: Path) -> str | None:
    """Why a folder is not a whole checkpoint, in a few words; None where it is one."""
    try:
        listed = reading.read_object(folder / MANIFEST)
        if missing := [name for name in PARTS if name not in listed]:
            return f"{MANIFEST} does not list {missing[0]}"
        for name, written in listed.items():
            path = Path(name)
            if path.is_absolute() or ".." in path.parts:
                return f"{MANIFEST} lists what is outside of the checkpoint"
            reading.verify(folder / path, written)
    except DamagedError as error:
        return f"{error.path.name} {error.reason}"
    return None


def is_whole(folder: Path) -> bool:
    """Whether the MANIFEST is there and every file that it lists is the one that was written."""
    return flaw(folder) is None


def load_state(folder: Path) -> dict[str, Any]:
    """state.json of a checkpoint.

    Raises:
        CheckpointError: the folder is not a whole checkpoint, or of another format.
    """
    if (found := flaw(folder)) is not None:
        raise CheckpointError(f"{folder} is not a whole checkpoint ({found})")
    state = reading.read_object(folder / "state.json", reading.LARGE)
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{folder} has checkpoint format {state.get('format')!r}; this version reads {FORMAT}")
    if not all(type(state.get(key)) is int and 0 <= state[key] < 2**63 for key in ("step", "policy_version")):
        raise CheckpointError(f"{folder}: state.json must hold a step and a policy version")
    return state


def load_policy(folder: Path, policy: Policy) -> None:
    """Put a checkpoint's adapter, population and version into `policy`.

    Raises:
        CheckpointError: not a whole checkpoint, or its tensors do not fit this policy.
    """
    state = load_state(folder)
    try:
        result = peft.set_peft_model_state_dict(policy.adapter, _tensors(folder / WEIGHTS))
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: adapter does not fit the model: {_last_line(error)}") from error
    if result.unexpected_keys:
        raise CheckpointError(f"{folder}: adapter does not fit the model (unexpected {result.unexpected_keys[0]})")
    _load_population(folder, policy)
    policy.version = state["policy_version"]


def load_start(folder: Path, policy: Policy) -> None:
    """Give `policy` the population that the run of this checkpoint began with.

    Raises:
        CheckpointError: not a whole checkpoint, or its tensors do not fit this policy.
    """
    load_state(folder)
    _load_population(folder, policy)
    policy.population.restart()


def newest(run: RunDirectory, notice: Callable[[str], None] = lambda text: None) -> Path:
    """Folder of the newest whole checkpoint. `notice` is told of newer ones that are not whole, and where the run's
    answers are those of another one.

    Raises:
        UsageError: there is none.
    """
    step = latest(run, notice)
    if step is None:
        raise UsageError(f"{run.path}: no whole checkpoint in this run; go on with it by ttrl-pop run --resume")
    if (answered := answering_step(run, step)) not in (None, step):
        notice(
            f"{run.path} has collapsed: this is its newest checkpoint, of step {step}, while its answers and best are "
            f"of step {answered}; name {run.path / 'best'} for that one"
        )
    return run.checkpoint(step)


def answering_step(run: RunDirectory, last: int | None) -> int | None:
    """The step whose weights gave the answers of a run that has ended, which is not the last one after a collapse; None
    where no verdict is there, or not as it was written.

    Args:
        last: the step of the newest whole checkpoint; a run that has gone on since its verdict has its answers to come.
    """
    if not os.path.lexists(run.verdict):
        return None
    known = identity.load(run)
    if run.verdict.name not in known.files or identity.flaw(run, known, run.verdict.name):
        return None
    row = reading.read_object(run.verdict)
    return row.get("answers_of_step") if row.get("steps") == last else None


def load_optimizer(folder: Path) -> dict[str, Tensor]:
    return _tensors(folder / "optimizer.safetensors")


def point_best(run: RunDirectory, step: int) -> None:
    """Let `best` point to the checkpoint of `step`, atomically."""
    temporary = run.path / ".best.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(Path("checkpoints") / run.checkpoint(step).name)
    try:
        os.replace(temporary, run.path / "best")
    except IsADirectoryError as error:
        raise TtrlPopError(f"{run.path / 'best'}: a folder stands where a link has to be; move it away") from error


def prune(run: RunDirectory, keep: int, best: int | None) -> None:
    """Remove what an interrupted save left, and all checkpoints but the newest `keep` whole ones and the best.

    Damaged ones do not count as kept; they go once `keep` whole ones are newer.
    """
    for leftover in run.checkpoints.glob(".saving-*"):
        _remove(leftover)
    kept = 0
    for step in reversed(steps(run)):
        if kept >= keep and step != best:
            _remove(run.checkpoint(step))
        elif kept < keep:
            kept += is_whole(run.checkpoint(step))


def steps(run: RunDirectory) -> list[int]:
    """Steps that have a checkpoint folder, ascending; a copy that a user made beside them has another name."""
    named = {folder.name: folder.name.removeprefix("step_") for folder in run.checkpoints.glob("step_*")}
    numbers = {int(number): name for name, number in named.items() if _NUMBER.fullmatch(number)}
    return sorted(step for step, name in numbers.items() if run.checkpoint(step).name == name)


def _load_population(folder: Path, policy: Policy) -> None:
    try:
        policy.population.load_state_dict(_tensors(folder / "population.safetensors"))
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder}: population does not fit: {_last_line(error)}. A run of an earlier version cannot go on with "
            "another population; start a new one"
        ) from error


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: holds no tensors ({error})") from error
    return tensors


def _last_line(error: BaseException) -> str:
    """What torch says of tensors that do not fit; a heading stands above it."""
    return str(error).strip().splitlines()[-1].strip()


def _remove(folder: Path) -> None:
    """Remove a checkpoint's folder, or what stands in its place."""
    if folder.is_dir() and not folder.is_symlink():
        # The MANIFEST goes first: a half-removed checkpoint must not look whole.
        manifest = folder / MANIFEST
        if not manifest.is_dir():
            manifest.unlink(missing_ok=True)
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)
