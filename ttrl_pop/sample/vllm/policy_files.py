"""Policies as folders that an engine elsewhere reads: adapter and population, under a name made of their content.

    FOLDER/policy-0f1e…/  adapter_config.json  adapter_model.safetensors   as peft and vLLM read them; not without one
                          population.safetensors                          mu [S, D] and log_sigma [S, D] or [S, 1]
                          sites.json                                      names of the S sites
                          owner                                           who removes it again; not where it stays

A name says what is in the folder: whoever reads it computes the name again, so that neither a file that was cut short
nor one from another run can pass for the policy that was asked for. The owner is part of that: the same policy of two
runs has two names, and neither removes what the other's servers still read.
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
OWNER = "owner"

_NAME = re.compile(PREFIX + "[0-9a-f]{32}")


def publish(folder: Path, adapter: Any, population: NormNoise | None, owner: str = "") -> str:
    """Write a policy into `folder` unless it is there, and return its name.

    Args:
        adapter: peft's, or None.
        population: None where minds are nothing but the model.
        owner: a word of whoever will `withdraw` it, that nobody else has.

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
        if owner:
            (work / OWNER).write_text(owner)
        for file in work.iterdir():
            file.chmod(0o644)
        name = PREFIX + _digest(work)
        try:
            work.rename(folder / name)
        except OSError:
            # It is there already, as a rule by another process of the run.
            if _flaw(folder, name) is not None:
                shutil.rmtree(folder / name, ignore_errors=True)
                work.rename(folder / name)
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


def is_there(folder: Path, name: str) -> bool:
    """Whether there is something of a policy's name in `folder`, for a quick look; `find` tells what it is."""
    try:
        return _NAME.fullmatch(name) is not None and (folder / name).is_dir()
    except OSError:
        return False


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
        mu_SD, log_sigma = numbers["mu"].float(), numbers["log_sigma"].float()
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
    count = len(sites) if isinstance(sites, list) else -1
    if mu_SD.shape[:-1] != (count,) or log_sigma.shape not in (mu_SD.shape, (count, 1)):
        raise ValueError(f"{name} has no mu and sigma for each of its norms")
    if not (mu_SD.isfinite().all() and log_sigma.exp().isfinite().all()):
        raise ValueError(f"{name} has a mu or a sigma that is no finite number")
    return NormNoise.of(sites, mu_SD, log_sigma)


def _flaw(folder: Path, name: str) -> str | None:
    """Why `name` is no policy in `folder`, in a line; None where it is one."""
    if not _NAME.fullmatch(name):
        return f"a policy is named {PREFIX} and 32 hexadecimal digits, got {name!r}"
    try:
        if not (folder / name).is_dir():
            return (
                f"{name} is not in the folder of policies: does the server see the folder that the learner writes to?"
            )
        if PREFIX + _digest(folder / name) != name:
            return f"{name} holds other files than its name says"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror}): may the server read what the learner writes?"
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
