"""The encoder: what reads the logits of a code off the hidden states of a whole text.

Its queries are one learned vector ζ at every position, so that nothing but the position tells them apart, and its
attention sees all states, later ones too (arXiv 2510.17558, section 3.1). It is used in training alone.
"""

import torch
from torch import Tensor, nn

from ttrl_pop.latent.layers import EPSILON, Attention, SwiGlu, initialise, rotary, turned

SHARPNESS = 2.0
"""Factor on the initial weights of the queries: attention begins by looking somewhere, not everywhere alike."""

BIAS = 0.5
"""Length of the initial bias of the keys, as a share of the query's."""


class Encoder(nn.Module):
    """One non-causal block with ζ as its input and the hidden states as its keys and values, then a readout of H bits.

    Its heads begin by looking 1, 2, … tokens ahead of their own position, where the news is: what the code of a token
    can tell the decoder is what comes next. Left to find that by themselves they may not, and then the decoder learns
    to pass over the code before it says anything.

    What is told well ahead, as where something begins, is found by none of these heads. With `places` states carry
    their positions, and heads begin anywhere.

    Args:
        source_width: width of the hidden states that are read.
        width: width of the block.
        rotary_base: of the positions that it will be given.
    """

    def __init__(
        self, source_width: int, width: int, heads: int, bits: int, rotary_base: float, places: bool = False
    ) -> None:
        super().__init__()
        self.zeta_D = nn.Parameter(torch.randn(width))
        self.before_queries = nn.RMSNorm(width, EPSILON)
        self.before_source = nn.RMSNorm(source_width, EPSILON)
        self.attention = Attention(width, heads, causal=False, source_width=source_width, key_bias=True)
        self.before_feed_forward = nn.RMSNorm(width, EPSILON)
        self.feed_forward = SwiGlu(width)
        self.before_readout = nn.RMSNorm(width, EPSILON)
        self.readout = nn.Linear(width, bits)
        self.place = nn.Linear(2 * (width // heads), source_width, bias=False) if places else None
        initialise(self)
        if not places:
            self._look_ahead(rotary_base)

    def _look_ahead(self, rotary_base: float) -> None:
        """Let the keys of head n be, but for what stands there, its query turned back by n + 1 positions."""
        heads, width = self.attention.heads, self.zeta_D.shape[0] // self.attention.heads
        bias_NW = self.attention.key_bias_NW
        assert bias_NW is not None
        with torch.no_grad():
            self.attention.query.weight.mul_(SHARPNESS)
            query_NW = self.attention.query(self.before_queries(self.zeta_D)).view(heads, width)
            cosines_NW, sines_NW = rotary(heads + 1, width, rotary_base)
            bias_NW.copy_(turned(query_NW, (cosines_NW[1:], -sines_NW[1:])) * BIAS)

    def forward(self, states_BTD: Tensor, positions: tuple[Tensor, Tensor], real_BT: Tensor | None = None) -> Tensor:
        """Bit logits (B, T, H) of hidden states (B, T, D).

        Args:
            real_BT: where there is a state; None where there is one everywhere.
        """
        source_BTD = self.before_source(states_BTD)
        if self.place is not None:
            source_BTD = source_BTD + self.place(torch.cat(positions, dim=-1))
        zeta_BTD = self.zeta_D.expand(*states_BTD.shape[:2], -1)
        states_BTD = zeta_BTD + self.attention(self.before_queries(zeta_BTD), source_BTD, positions, real_BT=real_BT)
        states_BTD = states_BTD + self.feed_forward(self.before_feed_forward(states_BTD))
        logits_BTH: Tensor = self.readout(self.before_readout(states_BTD))
        return logits_BTH
