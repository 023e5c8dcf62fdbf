"""Layers of a small transformer: RMSNorm before, SwiGLU, rotary positions."""

import torch
from torch import Tensor, nn

EPSILON = 1e-5
"""Added to the mean square under the root of a norm."""


def rotary(length: int, width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, width) of the angles by which queries and keys of each position are turned."""
    angles_T2 = torch.arange(length)[:, None] * base ** (-torch.arange(0, width, 2) / width)
    angles_TW = torch.cat([angles_T2, angles_T2], dim=-1)
    return angles_TW.cos(), angles_TW.sin()


def turned(heads: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys (B, heads, T, W), each turned by the angles of its position."""
    cosines_TW, sines_TW = positions
    first, second = heads.chunk(2, dim=-1)
    return heads * cosines_TW + torch.cat([-second, first], dim=-1) * sines_TW


def initialise(layers: nn.Module) -> None:
    """Give linear layers weights under which norms stay: 1/√(width that comes in), half of it where they add to the
    residual stream."""
    for name, part in layers.named_modules():
        if isinstance(part, nn.Linear):
            adds = name.rpartition(".")[2] == "out"
            nn.init.normal_(part.weight, std=(0.5 if adds else 1.0) * part.in_features**-0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class Attention(nn.Module):
    """Attention of queries to keys and values that may come from other states than theirs.

    Args:
        key_bias: give every key of a head a vector of its own beside the token's, by which the head can look at a
            distance, whatever stands there.
    """

    def __init__(
        self, width: int, heads: int, causal: bool, source_width: int | None = None, key_bias: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(source_width or width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.key_bias_NW = nn.Parameter(torch.zeros(heads, width // heads)) if key_bias else None

    def forward(
        self,
        queries_BTD: Tensor,
        source_BTD: Tensor,
        positions: tuple[Tensor, Tensor],
        past: "Past | None" = None,
        real_BT: Tensor | None = None,
    ) -> Tensor:
        """States (B, T, D) for queries and sources of the same T positions, which stand behind those in `past`.

        Args:
            real_BT: where there is a source that may be seen; None where all may.
        """
        query_BNTW = turned(self._split(self.query(queries_BTD)), positions)
        key_BTD, value_BTD = self.key_value(source_BTD).chunk(2, dim=-1)
        key_BNSW, value_BNSW = self._split(key_BTD), self._split(value_BTD)
        if self.key_bias_NW is not None:
            key_BNSW = key_BNSW + self.key_bias_NW[:, None]
        key_BNSW = turned(key_BNSW, positions)
        if past is not None:
            key_BNSW, value_BNSW = past.append(key_BNSW, value_BNSW)
        # A single query behind a past sees all that there is.
        causal = self.causal and query_BNTW.shape[2] > 1
        mask = None if real_BT is None else real_BT[:, None, None]
        mixed_BNTW = nn.functional.scaled_dot_product_attention(
            query_BNTW, key_BNSW, value_BNSW, attn_mask=mask, is_causal=causal
        )
        mixed: Tensor = self.out(mixed_BNTW.transpose(1, 2).flatten(2))
        return mixed

    def _split(self, states_BTD: Tensor) -> Tensor:
        return states_BTD.view(*states_BTD.shape[:2], self.heads, -1).transpose(1, 2)


class Past:
    """Keys and values (B, heads, S, W) of the positions that an attention has read."""

    def __init__(self) -> None:
        self._held: tuple[Tensor, Tensor] | None = None

    def append(self, key_BNTW: Tensor, value_BNTW: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, those of new positions behind the others."""
        if self._held is not None:
            key_BNTW = torch.cat([self._held[0], key_BNTW], dim=2)
            value_BNTW = torch.cat([self._held[1], value_BNTW], dim=2)
        self._held = key_BNTW, value_BNTW
        return self._held


class SwiGlu(nn.Module):
    """The gated feed-forward layer W_out (silu(W_gate x) · W_in x), 8/3 times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside = 8 * -(-width // 3)
        self.gate_in = nn.Linear(width, 2 * self.inside, bias=False)
        self.out = nn.Linear(self.inside, width, bias=False)

    def forward(self, states_BTD: Tensor) -> Tensor:
        gate, value = self.gate_in(states_BTD).chunk(2, dim=-1)
        found: Tensor = self.out(nn.functional.silu(gate) * value)
        return found


class Block(nn.Module):
    """A causal block of the decoder, whose keys and values may carry an injection R."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before_attention = nn.RMSNorm(width, EPSILON)
        self.attention = Attention(width, heads, causal=True)
        self.before_feed_forward = nn.RMSNorm(width, EPSILON)
        self.feed_forward = SwiGlu(width)

    def forward(
        self,
        states_BTD: Tensor,
        positions: tuple[Tensor, Tensor],
        injection_BTD: Tensor | None = None,
        past: Past | None = None,
    ) -> Tensor:
        queries_BTD = self.before_attention(states_BTD)
        source_BTD = queries_BTD if injection_BTD is None else self.before_attention(states_BTD + injection_BTD)
        states_BTD = states_BTD + self.attention(queries_BTD, source_BTD, positions, past)
        found: Tensor = states_BTD + self.feed_forward(self.before_feed_forward(states_BTD))
        return found
