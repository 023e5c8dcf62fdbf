"""environment.json: on what a run works. What is exact on one machine is exact up to rounding on another."""

import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ttrl_pop import __version__
from ttrl_pop.errors import DamagedError
from ttrl_pop.kernels import loops
from ttrl_pop.store import identity, reading
from ttrl_pop.store.directory import ENVIRONMENT, RunDirectory
from ttrl_pop.text import shown

PACKAGES = (
    *("torch", "transformers", "tokenizers", "peft", "accelerate", "safetensors", "numpy"),
    *("math-verify", "latex2sympy2_extended", "sympy", "mpmath", "regex", "scikit-learn"),
)
"""Distributions of which a rollout, an update or a vote may depend on the version."""

Environment = dict[str, Any]


def environment(backend: str) -> Environment:
    """What this process works on, by name, and how it was called (`argv`).

    Args:
        backend: name of the engine: the version of one that is not used changes nothing.
    """
    packages = [*PACKAGES, *(["vllm"] if backend == "vllm" else []), *(["numba"] if loops.are_there() else [])]
    return {
        "python": platform.python_version(),
        "os": " ".join([platform.system(), platform.machine(), *platform.libc_ver()]).strip(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "packages": {"ttrl-pop": __version__, **{name: found for name in packages if (found := _version(name))}},
        "argv": sys.argv,
    }


def dumps(found: Environment) -> str:
    """The content of environment.json."""
    return json.dumps(found, indent=1) + "\n"


def differences(before: Environment, now: Environment) -> str | None:
    """What of the environment is another than it was, in a line; None where nothing is. `argv` is not compared."""
    old, new = _flat(before), _flat(now)
    names = [name for name in dict.fromkeys([*new, *old]) if new.get(name) != old.get(name)]
    return ", ".join(f"{name} {new.get(name, 'gone')} (was {old.get(name, 'not there')})" for name in names) or None


def move(run: RunDirectory, backend: str) -> str | None:
    """Compare the environment of this process with the one in environment.json, and note it there where it differs.

    Returns:
        What a person must know of it, in a line; None where nothing is another.
    """
    now, known = environment(backend), identity.load(run)
    before: Environment | None = None
    try:
        identity.check(run, known, ENVIRONMENT)
        before = reading.read_object(run.environment)
    except DamagedError as error:
        said: str | None = f"{run.environment}: {error.reason.partition(';')[0]}; where the run began is not known"
    else:
        changed = differences(before, now)
        said = changed and f"the run goes on elsewhere, and what follows may differ by rounding: {changed}"
    if said:
        identity.record(run, ENVIRONMENT, dumps(now).encode())
    return said


def _flat(found: Environment) -> dict[str, str]:
    """Each figure by its name, as text that a stranger's file may have written."""
    rest = {name: value for name, value in found.items() if name not in ("packages", "argv")}
    packages = found.get("packages")
    whole = {**rest, **(packages if isinstance(packages, dict) else {})}
    return {shown(name): shown(_text(value), 80) for name, value in whole.items()}


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _cpu() -> str:
    """The processor's name, which Python knows on some systems only."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
