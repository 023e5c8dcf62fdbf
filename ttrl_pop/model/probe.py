"""Whether a model gives its own logits when sequences are packed."""

from dataclasses import replace
from typing import Any

import torch

from ttrl_pop.errors import UsageError
from ttrl_pop.model.forward import hidden_states, logits
from ttrl_pop.model.refusals import reason
from ttrl_pop.packing import attention
from ttrl_pop.packing.attention import Sizes
from ttrl_pop.packing.pack import Branch, Tree, pack

PACKING_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Largest difference of logits, over their largest size, by which packed rows may miss the model's own."""


def probe(network: Any) -> int:
    """Bytes of the keys and values of a token, over all layers. From now on plans say who sees whom in `network`.

    Raises:
        UsageError: packed rows would not give this model's own logits, as where layers keep a state, or attention has
            terms that a plan does not know.
    """
    kind, config = type(network).__name__, network.config
    device = next(network.parameters()).device
    vocabulary = config.get_text_config().vocab_size
    ids = tuple(i * 7919 % vocabulary for i in range(11))
    prompt, branches = ids[:5], (ids[5:7], ids[7:])
    packed = pack([Tree(prompt, None, tuple(Branch(branch, None) for branch in branches))], device)
    sizes = Sizes(packed.plan)
    with torch.no_grad():
        if config._attn_implementation == attention.NAME:
            network.set_attn_implementation("sdpa")
        rows = [torch.tensor([prompt + branch], device=device) for branch in branches]
        own_BV = torch.cat([network(input_ids=row, use_cache=False).logits[:, -1] for row in rows])
        # What a family does with an attention that is not its own is anything, and so is how it fails.
        try:
            network.set_attn_implementation(attention.NAME)
            hidden_ND = hidden_states(network, replace(packed, plan=sizes))
            packed_BV = logits(network, hidden_ND[[pieces[-1][-1] for pieces in packed.branches[0]]])
        except Exception as error:
            raise UsageError(
                f"{kind} cannot be used: it takes no attention but its own ({reason(error)}); name a model with plain "
                "causal attention"
            ) from error
    gap = float((packed_BV - own_BV).abs().max() / own_BV.abs().max())
    if not gap <= PACKING_TOLERANCE[own_BV.dtype]:
        raise UsageError(
            f"{kind} cannot be used: its sequences cannot be packed into one row (logits "
            f"differ by {gap:.1g} of their size); name a model with plain causal attention"
        )
    if sizes.windows == {None} and _has_windows(config.get_text_config()):
        raise UsageError(
            f"{kind} cannot be used: it does not say where its sliding windows are; name a "
            "model with plain causal attention"
        )
    return sizes.bytes_per_token


def _has_windows(config: Any) -> bool:
    """Whether some layers see a part of the sequence only."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return any("sliding" in kind or "chunked" in kind for kind in kinds)
    chunk = getattr(config, "attention_chunk_size", None)
    return bool(chunk or (getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)))
