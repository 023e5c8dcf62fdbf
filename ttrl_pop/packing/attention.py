"""Attention among sequences that lie one after another in a row, without padding.

A forward of ours has one row: the tokens of all its sequences, so that linear layers, norms and noise meet no padding.
Attention alone must know which token sees which. Transformers hands every layer's queries, keys and values to the
function registered here, which passes them to the plan of the forward:

    network(input_ids=ids_1N, position_ids=positions_1N, plan=plan, use_cache=False)

A plan splits the tokens into blocks, sets of queries of about one length, and says which keys each sees. A token sees
another if both are of one sequence and the other does not stand behind it, nor `window` or more tokens before it where
the layer has a sliding window. Prompts, completions that branch off a shared prompt, and single tokens that are
decoded against a cache are all of this form.

Keys and values have fewer heads than queries in most models; they are read grouped and never copied out.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from ttrl_pop.errors import UsageError

NAME = "ttrl_pop"
"""Name by which transformers knows this attention."""
BEHIND = torch.iinfo(torch.int64).max
"""Position of a key that no query sees."""
UNKNOWN_TERMS = ("softcap", "s_aux", "position_bias")
"""Arguments by which some families change the scores or their sum."""


class Plan(ABC):
    """Who sees whom in one forward over N tokens."""

    @abstractmethod
    def attend(
        self,
        layer: int,
        queries_NHD: Float[Tensor, "N H D"],
        keys_NKD: Float[Tensor, "N K D"],
        values_NKD: Float[Tensor, "N K D"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "N H D"]:
        """Attention of one layer; K divides H."""


@dataclass(slots=True)
class Block:
    """R rows of L queries, each row of one sequence, and the S keys that each row may see.

    Unused cells of a row repeat a token of the forward; what they compute is dropped, and as keys they lie behind
    every query.
    """

    queries_RL: Int[Tensor, "R L"] | slice
    """Tokens of the queries; a slice where they are R · L tokens in a row, which are then not copied."""
    rows: int
    keys_RS: Int[Tensor, "R S"] | None
    """Tokens of the keys; None where queries see queries of their own row alone."""
    query_positions_RL: Int[Tensor, "R L"]
    key_positions_RS: Int[Tensor, "R S"]
    """Unused keys: `BEHIND`."""
    biases: dict[tuple[int | None, int], Tensor | None] = field(default_factory=dict)

    def bias(self, window: int | None, shared: int, like: Tensor) -> Float[Tensor, "R 1 Q S"] | None:
        """Who sees whom, as `grouped` takes it for `shared` query heads of one key head; None where it is every key up
        to the query's own cell. Made once for all layers."""
        if (window, shared) not in self.biases:
            query, key = self.query_positions_RL[:, :, None], self.key_positions_RS[:, None, :]
            if self.keys_RS is None and (window is None or self.query_positions_RL.shape[1] <= window):
                # Unused cells stand at the end of a row, where no query that counts sees them.
                self.biases[window, shared] = None
            else:
                seen = key <= query
                if window is not None:
                    seen &= query - key < window
                self.biases[window, shared] = bias_of(seen, like).repeat_interleave(shared, dim=1)[:, None]
        return self.biases[window, shared]


class BlockPlan(Plan):
    """Blocks that together hold every token of the forward once, as a query."""

    def __init__(self, blocks: list[Block], order_N: Int[Tensor, "N"] | None) -> None:
        """`order_N`: for each token its index among the cells of all blocks, one after another; None where they are the
        tokens in order."""
        self.blocks = blocks
        self.order_N = order_N

    def attend(
        self, layer: int, queries_NHD: Tensor, keys_NKD: Tensor, values_NKD: Tensor, scale: float, window: int | None
    ) -> Tensor:
        parts = []
        for block in self.blocks:
            queries_RLHD = _rows(queries_NHD, block.queries_RL, block.rows)
            seen = block.queries_RL if block.keys_RS is None else block.keys_RS
            keys_RSKD, values_RSKD = (_rows(states, seen, block.rows) for states in (keys_NKD, values_NKD))
            bias = block.bias(window, queries_NHD.shape[1] // keys_NKD.shape[1], queries_NHD)
            parts.append(grouped(queries_RLHD, keys_RSKD, values_RSKD, scale, bias).flatten(0, 1))
        together = parts[0] if len(parts) == 1 else torch.cat(parts)
        return together if self.order_N is None else together.index_select(0, self.order_N)


class Sizes(Plan):
    """Another plan, which counts what a cache of its keys and values would take, and notes the layers' windows."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.bytes_per_token = 0
        self.windows: set[int | None] = set()

    def attend(
        self, layer: int, queries_NHD: Tensor, keys_NKD: Tensor, values_NKD: Tensor, scale: float, window: int | None
    ) -> Tensor:
        self.windows.add(window)
        self.bytes_per_token += (keys_NKD[0].numel() + values_NKD[0].numel()) * keys_NKD.element_size()
        return self.plan.attend(layer, queries_NHD, keys_NKD, values_NKD, scale, window)


class Look(Plan):
    """A plan by which a layer is looked at, alone: each token sees a mixture of its own query, key and value."""

    asked: tuple[int, float, int | None] | None = None
    """Layer, scale and window that it was asked with last."""

    def attend(
        self, layer: int, queries_NHD: Tensor, keys_NKD: Tensor, values_NKD: Tensor, scale: float, window: int | None
    ) -> Tensor:
        self.asked = layer, scale, window
        shared = queries_NHD.shape[1] // keys_NKD.shape[1]
        return queries_NHD + (keys_NKD - 2 * values_NKD).repeat_interleave(shared, dim=1)


def grouped(
    queries_RLHD: Float[Tensor, "R L H D"],
    keys_RSKD: Float[Tensor, "R S K D"],
    values_RSKE: Float[Tensor, "R S K E"],
    scale: float,
    bias: Float[Tensor, "R 1 Q S"] | None,
) -> Float[Tensor, "R L H E"]:
    """Softmax attention; each key head serves H / K query heads.

    Args:
        bias: is added to the scores; Q = L · H / K: for each query the heads that share a key head. Without it query i
            sees keys 0..i.
    """
    rows, length, heads, width = queries_RLHD.shape
    shared = heads // keys_RSKD.shape[2]
    keys, values = keys_RSKD.transpose(1, 2), values_RSKE.transpose(1, 2)
    if bias is None:
        out = nn.functional.scaled_dot_product_attention(
            queries_RLHD.transpose(1, 2), keys, values, scale=scale, is_causal=True, enable_gqa=shared > 1
        )
        return out.transpose(1, 2)
    # The heads that share a key head become more queries of it: [R, K, L · shared, D].
    folded = queries_RLHD.view(rows, length, -1, shared, width).transpose(1, 2).flatten(2, 3)
    out = _folded(folded, keys, values, scale, bias)
    return out.view(rows, -1, length, shared, out.shape[-1]).transpose(1, 2).reshape(rows, length, heads, -1)


def single(
    queries_NHD: Float[Tensor, "N H D"],
    keys_NKSD: Float[Tensor, "N K S D"],
    values_NKSE: Float[Tensor, "N K S E"],
    scale: float,
    bias: Float[Tensor, "N 1 1 S"] | None,
) -> Float[Tensor, "N H E"]:
    """Softmax attention of one query for each sequence; each key head serves H / K query heads.

    Args:
        bias: is added to the scores; without it every key is seen.
    """
    sequences, heads, width = queries_NHD.shape
    key_heads = keys_NKSD.shape[1]
    queries = queries_NHD.view(sequences, key_heads, -1, width)
    return _folded(queries, keys_NKSD, values_NKSE, scale, bias).reshape(sequences, heads, -1)


def _folded(
    queries_RKQD: Float[Tensor, "R K Q D"],
    keys_RKSD: Float[Tensor, "R K S D"],
    values_RKSE: Float[Tensor, "R K S E"],
    scale: float,
    bias: Float[Tensor, "R 1 #Q S"] | None,
) -> Float[Tensor, "R K Q E"]:
    """Softmax attention of all queries of a key head."""
    is_wide = queries_RKQD.dtype in (torch.float32, torch.float64)
    if not (queries_RKQD.device.type == "cpu" and is_wide and queries_RKQD.shape[2] <= 2 * queries_RKQD.shape[3]):
        return nn.functional.scaled_dot_product_attention(
            queries_RKQD, keys_RKSD, values_RKSE, attn_mask=bias, scale=scale
        )
    # On a CPU two batched products are 1.2 to 2 times as fast as the fused form, which is made for long rows, as long
    # as scores take no more memory than keys and values.
    heads = queries_RKQD.shape[:3]
    scores = torch.bmm((queries_RKQD * scale).flatten(0, 1), keys_RKSD.flatten(0, 1).transpose(1, 2))
    if bias is not None:
        # In place on a view the backward pass would copy its gradient.
        scores = (scores.view(*heads, -1) + bias).flatten(0, 1)
    return torch.bmm(torch.softmax(scores, dim=-1), values_RKSE.flatten(0, 1)).view(*heads, -1)


def bias_of(seen: Bool[Tensor, "*B"], like: Tensor) -> Float[Tensor, "*B"]:
    """0 where `seen`, -inf elsewhere, in the type of `like`."""
    return torch.zeros_like(seen, dtype=like.dtype).masked_fill_(~seen, -torch.inf)


def _rows(states_NHD: Tensor, tokens_RL: Tensor | slice, rows: int) -> Tensor:
    """[R, L, H, D]: states of these tokens."""
    if isinstance(tokens_RL, slice):
        return states_NHD[tokens_RL].view(rows, -1, *states_NHD.shape[1:])
    return states_NHD.index_select(0, tokens_RL.flatten()).view(*tokens_RL.shape, *states_NHD.shape[1:])


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    *,
    plan: Plan,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **terms: Any,
) -> tuple[Tensor, None]:
    """transformers' interface: [1, H, N, D] in, [1, N, H, D] out.

    Raises:
        UsageError: the layer's scores have a term that no plan knows of.
    """
    for name in UNKNOWN_TERMS:
        if terms.get(name) is not None:
            raise UsageError(
                f"{type(module).__name__} cannot be used: its attention has the term {name}; name a model with plain "
                "causal attention"
            )
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: Any = module.layer_idx
    return plan.attend(layer, queries, keys, values, scale, sliding_window)[None], None


def _no_mask(*_: object, **__: object) -> None:
    """No mask: the plan knows who sees whom."""
    return


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _no_mask)
