"""A packed row → hidden states → logits, of a network whose attention asks the row's plan who sees whom."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from ttrl_pop.packing.pack import Pack


def hidden_states(network: Any, packed: Pack) -> Float[Tensor, "N D"]:
    """What the LM head reads, for every token of the row."""
    states: Tensor = network.base_model(
        input_ids=packed.ids_N[None],
        position_ids=packed.positions_N[None],
        # Of four dimensions, so that transformers makes none of its own: nobody reads it.
        attention_mask=packed.ids_N.new_zeros(1, 1, 1, 1),
        plan=packed.plan,
        use_cache=False,
    ).last_hidden_state
    return states[0]


def logits(network: Any, hidden_KD: Float[Tensor, "K D"]) -> Float[Tensor, "K V"]:
    """Logits of the next token for each state."""
    logits: Tensor = network.get_output_embeddings()(hidden_KD)
    return scaled_logits(logits, network.config.get_text_config())


def token_logits(network: Any, hidden_KD: Float[Tensor, "K D"], targets_K: Int[Tensor, "K"]) -> Float[Tensor, "K"]:
    """Logit of one given token for each state."""
    head = network.get_output_embeddings()
    logits_K = (hidden_KD * head.weight.index_select(0, targets_K)).sum(-1)
    if head.bias is not None:
        logits_K = logits_K + head.bias.index_select(0, targets_K)
    return scaled_logits(logits_K, network.config.get_text_config())


def recompute_layers(network: nn.Module) -> None:
    """From now on keep no activations inside a layer for the backward pass, but compute them again there. However often
    it is asked for, they are computed again once."""
    for module in network.modules():
        if (
            isinstance(module, GradientCheckpointingLayer)
            and getattr(module.forward, "func", None) is not _checkpointed
        ):
            # transformers' own switch asks for training, which would switch dropout on.
            module.forward = partial(_checkpointed, module.forward)


def _checkpointed(forward: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **named)
    return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False, **named)


def scaled_logits(logits: Tensor, config: Any) -> Tensor:
    """Logits after what some families do behind their LM head."""
    scale = getattr(config, "logit_scale", None)
    if scale is not None:
        logits = logits * scale
    divisor = getattr(config, "logits_scaling", None)
    if divisor is not None:
        logits = logits / divisor
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def at_temperature(logits: Float[Tensor, "..."], temperature: float) -> Float[Tensor, "..."]:
    """logits / temperature. Temperature 0 (greedy) counts as 1, where a pass over the vocabulary is saved."""
    return logits if temperature in (0.0, 1.0) else logits / temperature
