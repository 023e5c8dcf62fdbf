"""Tiny models for vLLM's engine, policies on them, and options under which it is tight: prompts are longer than one
forward may hold, so they are read in parts, and all requests together need more cache than there is, so some are thrown
out and begin again."""

from pathlib import Path

import safetensors.torch
import torch
from fakes import norm_noise, save_tiny

from ttrl_pop.config import LoraConfig, SamplingConfig
from ttrl_pop.model.load import load_model
from ttrl_pop.model.policy import Policy
from ttrl_pop.population.base import Population

WIDTH = 128
"""Heads of 32, the smallest that vLLM's attention on a CPU knows."""
TIGHT = {
    "batch_tokens": 48,
    "cpu_cache": 0.25,
    "max_model_len": 256,
    "engine": {"num_gpu_blocks_override": 14, "enable_chunked_prefill": True},
}
ROWS = 16


class Models:
    """Tiny models by family, saved once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, family: str) -> str:
        folder = self.folder / family
        if not folder.exists():
            save_tiny(folder, family, width=WIDTH)
            if family == "gemma3":
                soften(folder)
        return str(folder)

    def policy(
        self, name: str, population: Population | None = None, sigma: float = 0.3, dtype: str = "float32"
    ) -> Policy:
        """A policy whose adapter and mu are away from their neutral start; `name` is a family or a model."""
        tiny = name != "smollm2"
        lora = LoraConfig(rank=8, alpha=16)
        model = load_model(self.path(name) if tiny else name, "cpu", dtype)
        policy = Policy(model, population or norm_noise(sigma), lora, seed=1)
        changed(policy, 2, 0.05 if tiny else 0.002)
        return policy


def soften(folder: Path) -> None:
    """Gemma multiplies its embeddings, which are its LM head too: with random weights every token would predict itself
    with certainty, whatever a mind does."""
    file = folder / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    # Gemma's norms multiply by one plus their weight.
    weights["model.norm.weight"].fill_(-0.8)
    safetensors.torch.save_file(weights, file, {"format": "pt"})


def changed(policy: Policy, seed: int, size: float) -> None:
    """An update of everything that learns, in place, as an optimizer makes it."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in [*policy.adapter_parameters().values(), *policy.population_parameters().values()]:
            parameter.add_(torch.randn_like(parameter) * size)
    policy.version += 1


def tight(**options: object) -> dict[str, object]:
    return {**TIGHT, **options}


def sampling(**settings: object) -> SamplingConfig:
    return SamplingConfig(**{"max_new_tokens": 20, "max_rows": ROWS, **settings})
