"""The encoder: what reads the logits of a code off the hidden states of a whole text.

Its queries are one learned vector ζ at every position, so that nothing but the position tells them apart, and its
attention sees all states, later ones too (arXiv 2510.17558, section 3.1). It is used in training alone.
"""

import torch
from torch import Tensor, nn

from ttrl_pop.latent.layers import EPSILON, Attention, SwiGlu, initialise


class Encoder(nn.Module):
    """One non-causal block with ζ as its input and the hidden states as its keys and values, then a readout of H bits.

    Args:
        source_width: width of the hidden states that are read.
        width: width of the block.
        sharpness: factor on the initial weights of the queries. At 1 every query attends to everything alike at first,
            and what a single token says is lost in the mean.
    """

    def __init__(self, source_width: int, width: int, heads: int, bits: int, sharpness: float) -> None:
        super().__init__()
        self.zeta_D = nn.Parameter(torch.randn(width))
        self.before_queries = nn.RMSNorm(width, EPSILON)
        self.before_source = nn.RMSNorm(source_width, EPSILON)
        self.attention = Attention(width, heads, causal=False, source_width=source_width)
        self.before_feed_forward = nn.RMSNorm(width, EPSILON)
        self.feed_forward = SwiGlu(width)
        self.before_readout = nn.RMSNorm(width, EPSILON)
        self.readout = nn.Linear(width, bits)
        initialise(self)
        with torch.no_grad():
            self.attention.query.weight.mul_(sharpness)

    def forward(self, states_BTD: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
        """Bit logits (B, T, H) of hidden states (B, T, D)."""
        source_BTD = self.before_source(states_BTD)
        zeta_BTD = self.zeta_D.expand(*states_BTD.shape[:2], -1)
        states_BTD = zeta_BTD + self.attention(self.before_queries(zeta_BTD), source_BTD, positions)
        states_BTD = states_BTD + self.feed_forward(self.before_feed_forward(states_BTD))
        logits_BTH: Tensor = self.readout(self.before_readout(states_BTD))
        return logits_BTH
