"""One mind of a run's checkpoint: the policy that it is, and what of it goes into a folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import peft
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ttrl_pop.config import LoraConfig
from ttrl_pop.errors import UsageError
from ttrl_pop.model.policy import Policy, with_adapter
from ttrl_pop.population.base import MEAN, NoPopulation, Population
from ttrl_pop.population.latent import Latent
from ttrl_pop.population.norm_noise import NormNoise
from ttrl_pop.types import Mind

Offsets = Mapping[str, Float[Tensor, "D"]]
"""What a mind adds behind each norm, by the norm's name; norms that it adds nothing to are left out."""


class NoFormError(UsageError):
    """A form of export that cannot hold this mind exactly."""


@dataclass(frozen=True, slots=True)
class Lora:
    """A trained adapter without the network that it belongs to."""

    settings: LoraConfig
    tensors: Mapping[str, Tensor]
    """As `peft.get_peft_model_state_dict` names them."""


def offsets_of(population: Population, mind: Mind) -> dict[str, Tensor]:
    """What `mind` adds behind each norm.

    Raises:
        UsageError: the population's minds are something else, or one mind is not one model.
    """
    if isinstance(population, NoPopulation):
        return {}
    if isinstance(population, Latent):
        if mind != MEAN:
            raise UsageError(
                "a mind of latent adds to what layers read, which export does not write; "
                "leave --mind out for the mean mind"
            )
        return {}
    if not isinstance(population, NormNoise):
        raise UsageError(
            f"minds of {type(population).__name__} are no offsets behind norms, and nothing else can be exported; "
            "export runs of norm-noise, latent or none"
        )
    if mind != MEAN:
        for option, value in (("level", "token"), ("scope", "completion")):
            if getattr(population.options, option) == value:
                raise UsageError(
                    f'a mind of {option} = "{value}" adds other offsets to some tokens than to others, which no model '
                    "folder does; leave --mind out for the mean mind"
                )
    offsets_SD = population.offsets([mind])[:, 0].cpu()
    return {site: offset for site, offset in zip(population.sites, offsets_SD, strict=True) if offset.any()}


def lora_of(policy: Policy, settings: LoraConfig) -> Lora:
    """A copy of the policy's adapter."""
    tensors = peft.get_peft_model_state_dict(policy.adapter, save_embedding_layers=False)
    return Lora(settings, {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()})


def adapted(network: nn.Module, lora: Lora) -> Any:
    """The network with the trained adapter in it."""
    made = with_adapter(network, lora.settings, seed=0)
    peft.set_peft_model_state_dict(made, dict(lora.tensors))
    return made


@torch.no_grad()
def merged(network: nn.Module, lora: Lora | None) -> Any:
    """The network with the trained adapter merged into its weights."""
    if lora is None:
        return network
    return adapted(network, lora).merge_and_unload()


def matvec(weight_OI: Float[Tensor, "O I"], offset_I: Float[Tensor, "I"]) -> Float[Tensor, "O"]:
    """W z as a linear layer adds it, in float64: its rounding is then that of the type that it is stored in."""
    return weight_OI.detach().to("cpu", torch.float64) @ offset_I.to(torch.float64)
