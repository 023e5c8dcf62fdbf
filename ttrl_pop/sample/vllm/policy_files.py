"""Policies as folders that an engine elsewhere reads: adapter and population, under a name made of their content.

    FOLDER/policy-0f1e…/  adapter_config.json  adapter_model.safetensors   as peft and vLLM read them; not without one
                          population.safetensors                          mu [S, D] and log_sigma [S, D] or [S, 1]
                          sites.json                                      names of the S sites

A name says what is in the folder: whoever reads it computes the name again, so that neither a file that was cut short
nor one from another run can pass for the policy that was asked for.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from ttrl_pop.errors import UsageError
from ttrl_pop.model.adapter_files import save_adapter
from ttrl_pop.population.norm_noise import NormNoise

PREFIX = "policy-"
WEIGHTS, SITES = "population.safetensors", "sites.json"
ADAPTER = "adapter_config.json"

_NAME = re.compile(PREFIX + "[0-9a-f]{32}")


def publish(folder: Path, adapter: Any, population: NormNoise | None) -> str:
    """Write a policy into `folder` unless it is there, and return its name.

    Args:
        adapter: peft's, or None.
        population: None where minds are nothing but the model.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    try:
        # An engine may be another user's.
        work.chmod(0o755)
        if adapter is not None:
            save_adapter(adapter, work)
        if population is not None:
            numbers = {"mu": population.mu, "log_sigma": population.log_sigma}
            safetensors.torch.save_file(
                {name: value.detach().float().cpu().contiguous() for name, value in numbers.items()}, work / WEIGHTS
            )
            (work / SITES).write_text(json.dumps(list(population.sites)))
        name = PREFIX + _digest(work)
        if _flaw(folder, name) is not None:
            shutil.rmtree(folder / name, ignore_errors=True)
            try:
                work.rename(folder / name)
            except OSError:
                # Another process has just written the same.
                if _flaw(folder, name) is not None:
                    raise
        return name
    finally:
        shutil.rmtree(work, ignore_errors=True)


def withdraw(folder: Path, name: str) -> None:
    """Remove a policy that nobody will ask for again."""
    shutil.rmtree(folder / name, ignore_errors=True)


def find(folder: Path, name: str) -> Path:
    """The folder of the policy `name`.

    Raises:
        ValueError: there is none, or what is there is another one.
    """
    if (flaw := _flaw(folder, name)) is not None:
        raise ValueError(flaw)
    return folder / name


def read_population(folder: Path, name: str) -> NormNoise:
    """The population of the policy `name`.

    Raises:
        ValueError: it has none, or `find` raises it.
    """
    path = find(folder, name)
    if not (path / WEIGHTS).is_file():
        raise ValueError(f"{name} has no population: its minds are the model itself")
    try:
        numbers = safetensors.torch.load_file(path / WEIGHTS)
        sites = json.loads((path / SITES).read_text())
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
    return NormNoise.of(sites, numbers["mu"], numbers["log_sigma"])


def _flaw(folder: Path, name: str) -> str | None:
    """Why `name` is no policy in `folder`, in a line; None where it is one."""
    if not _NAME.fullmatch(name):
        return f"a policy is named {PREFIX} and 32 hexadecimal digits, got {name!r}"
    if not (folder / name).is_dir():
        return f"{name} is not in the folder of policies: does the server see the folder that the learner writes to?"
    if PREFIX + _digest(folder / name) != name:
        return f"{name} holds other files than its name says"
    return None


def _digest(folder: Path) -> str:
    """Fingerprint of the files of a folder, their names included."""
    whole = hashlib.blake2b(digest_size=16)
    for file in sorted(folder.iterdir()):
        content = file.read_bytes() if file.is_file() else b""
        whole.update(f"{file.name}:{len(content)}:".encode())
        whole.update(content)
    return whole.hexdigest()


def folder_of(path: str | os.PathLike[str]) -> Path:
    """The folder of policies that a setting names.

    Raises:
        UsageError: it is not there and cannot be made.
    """
    folder = Path(path).expanduser().resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"folder of policies {folder}: {error.strerror}; name one that can be written to") from error
    return folder
