"""Policies on tiny models that are kept on disk, and what an export of one of their minds comes to."""

from pathlib import Path
from typing import Any

import torch
from fakes import PROBLEMS, norm_noise, save_tiny

from ttrl_pop.config import LoraConfig
from ttrl_pop.export.export import FORMS
from ttrl_pop.export.proof import Evidence, evidence
from ttrl_pop.export.trained import Lora, lora_of, offsets_of
from ttrl_pop.model.load import load_model
from ttrl_pop.model.policy import Policy
from ttrl_pop.model.prompts import encode
from ttrl_pop.population.base import MEAN, Population
from ttrl_pop.population.norm_noise import final_site
from ttrl_pop.types import Mind

LORA = LoraConfig(rank=2, alpha=4)


class Tiny:
    """A tiny model's folder, and a policy on it that has learned: adapter and mu are away from where they begin."""

    def __init__(
        self, folder: Path, family: str, final_mu: bool = True, width: int = 16, dtype: str = "float32", **more: Any
    ) -> None:
        self.dtype = dtype
        self.base = folder if folder.exists() else save_tiny(folder, family, width=width)
        population: Population = norm_noise(0.3, final_mu=final_mu, **more)
        self.policy = Policy(load_model(str(self.base), "cpu", dtype), population, LORA, seed=1)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            parameters = [*self.policy.adapter_parameters().values(), *self.policy.population_parameters().values()]
            for parameter in parameters:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            if not final_mu:
                population.mu[final_site(population.sites)] = 0

    @property
    def lora(self) -> Lora:
        return lora_of(self.policy, LORA)

    def evidence(self, mind: Mind = MEAN) -> Evidence:
        prompts = [encode(self.policy.model.tokenizer, problem) for problem in PROBLEMS]
        return evidence(self.policy, mind, prompts)

    def network(self) -> Any:
        """The base model as it was read."""
        return load_model(str(self.base), "cpu", self.dtype).network

    def export(self, form: str, out: Path, mind: Mind = MEAN) -> Path:
        """A folder of that form; raises NoFormError where the mind has none."""
        network, offsets = self.network(), offsets_of(self.policy.population, mind)
        FORMS[form].check(network, offsets)
        FORMS[form].write(network, self.lora, offsets, out)
        self.policy.model.tokenizer.save_pretrained(out)
        return out
