"""A run's checkpoint as what a server starts with: its policy in a folder, and the command line of vLLM."""

import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ttrl_pop.config import Config
from ttrl_pop.errors import UsageError
from ttrl_pop.model.prompts import has_special_marks
from ttrl_pop.population.norm_noise import NormNoise
from ttrl_pop.sample.vllm import policy_files
from ttrl_pop.sample.vllm.backend import GAPS, noisy_sites
from ttrl_pop.sample.vllm.options import room_for
from ttrl_pop.sample.vllm.plugin import SETTINGS, WORKER
from ttrl_pop.serve.names import Served
from ttrl_pop.store import identity
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.store.trained import trained_policy

SETTLED = ("--model", "--served-model-name", "--additional-config", "--worker-cls", "--lora-modules")
"""Arguments of vLLM by which minds and their names are served."""

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a server starts with."""

    served: Served
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
        UsageError: the run's minds or its dtype are none that vLLM knows here, its model is another one, or one of
            `more` is not to be given.
    """
    for argument in more:
        if argument.split("=")[0].replace("_", "-") in SETTLED:
            raise UsageError(f"{argument} is what serve serves minds by; leave it out")
    if not _NAME.fullmatch(name):
        raise UsageError(f"--name must be letters, digits and . _ - between slashes, got {name!r}")
    policy = trained_policy(run, checkpoint, config, identity.load(run), "cpu")
    noisy_sites(policy.population, "ask this run by ttrl-pop sample")
    noise = policy.population if isinstance(policy.population, NormNoise) else None
    if policy.dtype_name not in GAPS:
        raise UsageError(f"serve runs models in {' or '.join(GAPS)}, got dtype {policy.dtype_name}")
    lora = None if policy.adapter is None else policy.adapter.peft_config["default"].r
    known = noise is not None or lora is not None
    named = policy_files.publish(folder, policy.adapter, noise) if known else None
    marked = has_special_marks(policy.model.tokenizer)
    served = Served(name, f"{name}/base", named, lora is not None, noise is not None, config, marked)
    assert policy.model.source is not None
    arguments = arguments_of(served, policy.model.source, policy.dtype_name, folder, lora)
    command = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", *arguments, *more]
    return Prepared(served, command)


def arguments_of(served: Served, model: str, dtype: str, folder: Path, rank: int | None) -> list[str]:
    """What vLLM's server is started with.

    Args:
        rank: of the adapter; None without one.
    """
    found = [
        *("--model", model, "--served-model-name", served.base, "--dtype", dtype),
        *("--middleware", "ttrl_pop.serve.app.Names", "--enable-prompt-tokens-details"),
        # Those that tokens are drawn from, as in a run.
        *("--logprobs-mode", "processed_logprobs"),
    ]
    if served.noisy:
        # Named here, the worker says so where vLLM did not load the plug-in that it needs.
        found += ["--additional-config", json.dumps({SETTINGS: {"folder": str(folder)}}), "--worker-cls", WORKER]
    if rank is not None:
        found += ["--enable-lora", "--max-lora-rank", str(room_for(rank))]
        # As JSON: in the short form a comma in a path would end it.
        module = {"name": served.policy, "path": str(folder / str(served.policy))}
        found += ["--lora-modules", json.dumps(module)]
    return found


def shown(command: Sequence[str]) -> str:
    """A command as a shell takes it, without its keys."""
    found, key = list[str](), False
    for argument in command:
        key = not argument.startswith("--") and key
        found.append("KEY" if key else re.sub(r"^(--api[-_]key=).*", r"\1KEY", argument, flags=re.DOTALL))
        key = key or argument in ("--api-key", "--api_key")
    return shlex.join(found)
