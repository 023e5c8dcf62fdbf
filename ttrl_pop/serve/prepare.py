"""A run's checkpoint as what a server starts with: its policy in a folder, and the command line of vLLM."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ttrl_pop.config import Config
from ttrl_pop.errors import UsageError
from ttrl_pop.population.norm_noise import NormNoise
from ttrl_pop.sample.vllm import policy_files
from ttrl_pop.sample.vllm.backend import GAPS, noisy_sites
from ttrl_pop.sample.vllm.options import room_for
from ttrl_pop.sample.vllm.plugin import SETTINGS
from ttrl_pop.serve.names import Served
from ttrl_pop.store import identity
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.store.files import write_atomic
from ttrl_pop.store.trained import trained_policy

SERVED = "served.json"
"""File of what is served, in the folder of policies."""

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a server starts with."""

    served: Served
    settings: Path
    """File for `ttrl_pop.serve.app`."""
    command: list[str]
    """Python, and vLLM's server with its arguments."""


def prepare(
    run: RunDirectory, checkpoint: Path, config: Config, name: str, folder: Path, more: Sequence[str] = ()
) -> Prepared:
    """Write what a server of this checkpoint reads.

    Args:
        name: of the mean mind; the others' names begin with it.
        folder: for the policy; what is there of another one stays.
        more: further arguments of vLLM, which win over ours.

    Raises:
        UsageError: the run's minds or its dtype are none that vLLM knows here, or its model is another one.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"--name must be letters, digits and . _ - between slashes, got {name!r}")
    policy = trained_policy(run, checkpoint, config, identity.load(run).model, "cpu")
    noisy_sites(policy.population)
    if policy.dtype_name not in GAPS:
        raise UsageError(f"serve runs models in {' or '.join(GAPS)}, got dtype {policy.dtype_name}")
    noise = policy.population if isinstance(policy.population, NormNoise) else None
    lora = None if policy.adapter is None else policy.adapter.peft_config["default"].r
    known = noise is not None or lora is not None
    named = policy_files.publish(folder, policy.adapter, noise) if known else None
    served = Served(name, f"{name}/base", named, lora is not None, noise is not None, config)
    settings = folder / SERVED
    write_atomic(settings, (json.dumps(served.row(), indent=1) + "\n").encode())
    assert policy.model.source is not None
    arguments = [
        *("--model", policy.model.source, "--served-model-name", served.base, "--dtype", policy.dtype_name),
        *("--middleware", "ttrl_pop.serve.app.Names", "--enable-prompt-tokens-details"),
    ]
    if noise is not None:
        arguments += ["--additional-config", json.dumps({SETTINGS: {"folder": str(folder)}})]
    if lora is not None:
        arguments += [
            "--enable-lora",
            "--max-lora-rank",
            str(room_for(lora)),
            "--lora-modules",
            f"{named}={folder / str(named)}",
        ]
    command = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", *arguments, *more]
    return Prepared(served, settings, command)
