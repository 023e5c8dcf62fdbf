"""What a policy takes of the memory, by part, before a weight of it is read."""

from dataclasses import dataclass
from typing import Any

import torch

from ttrl_pop.config import LoraConfig
from ttrl_pop.kernels.install import second_weights
from ttrl_pop.model.load import LoadedModel
from ttrl_pop.model.policy import with_adapter
from ttrl_pop.population.base import Population


@dataclass(frozen=True, slots=True)
class PolicySize:
    """Bytes of a policy, and how many layers it has."""

    layers: int
    hidden: int
    """Width of the hidden states."""
    vocabulary: int
    weights: int
    """The base model's weights."""
    merged: int
    """Weights once more, with their adapters taken into them."""
    laid_out: int
    """Weights once more, in the order in which products read them."""
    trained: int
    """Adapter and population."""


def policy_size(
    outline: LoadedModel, population: Population, lora: LoraConfig | None, device: torch.device
) -> PolicySize:
    """The size on `device` of the policy that `outline`, `population` and an adapter make; their networks are changed,
    and neither can be used for anything else.

    Raises:
        UsageError: the adapter does not fit the model, or the population does not.
    """
    network: Any = outline.network
    text = network.config.get_text_config()
    weights = _bytes(network.parameters())
    population.attach(network)
    if lora is not None:
        with_adapter(network, lora, 0)
    merged, laid_out = second_weights(network, device)
    adapter = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return PolicySize(
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        vocabulary=int(text.vocab_size),
        weights=weights,
        merged=merged,
        laid_out=laid_out,
        trained=_bytes(adapter) + _bytes(population.parameters()),
    )


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
