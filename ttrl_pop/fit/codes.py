"""Codes of completions in the fit of latent minds: read off by an encoder, or drawn from the prior."""

from collections.abc import Collection
from itertools import accumulate
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ttrl_pop import randomness
from ttrl_pop.fit.completions import Reading
from ttrl_pop.latent.codes import balanced, draw_bits, kl_to_uniform, signs
from ttrl_pop.latent.encoder import Encoder
from ttrl_pop.latent.layers import rotary

HEADS = 4
CERTAINTY = 3.0
"""Factor on the initial weights of the readout: codes begin by telling something, so that they are listened to."""
ROTARY_BASE = 100.0
"""For completions of some tens of tokens: the encoder looks near itself first."""


class CompletionEncoder(nn.Module):
    """The encoder of the Free Transformer, over the completion and the last token of its prompt."""

    sizes_D: Tensor

    def __init__(self, source_width: int, width: int, bits: int) -> None:
        super().__init__()
        self.head_width = width // HEADS
        self.encoder = Encoder(source_width, width, HEADS, bits, ROTARY_BASE)
        # A few dimensions of a model are often tens of times as large as the others, and would be all that is read.
        self.register_buffer("sizes_D", torch.ones(source_width))
        with torch.no_grad():
            self.encoder.readout.weight.mul_(CERTAINTY)

    def forward(self, states_ND: Tensor, reading: Reading) -> Float[Tensor, "B T H"]:
        """Bit logits of each token of the windows, of hidden states, each dimension in units of its `sizes_D`."""
        positions = rotary(reading.window_BT.shape[1], self.head_width, ROTARY_BASE)
        turns = positions[0].to(states_ND), positions[1].to(states_ND)
        logits_BTH: Tensor = self.encoder((states_ND / self.sizes_D)[reading.window_BT], turns, reading.real_BT)
        return logits_BTH


class Codes:
    """One draw of codes for the completions of a reading: C codes of H bits, one a completion or one a token that
    predicts a token of it."""

    def __init__(
        self,
        reading: Reading,
        encoder: CompletionEncoder | None,
        level: Literal["sequence", "token"],
        bits: int,
        *purpose: int | str,
        untold: Collection[int] = (),
    ) -> None:
        """
        Args:
            encoder: None draws from the prior.
            purpose: keys the draw, with the completion's number.
            untold: numbers of completions that are read under codes of the prior, whatever the encoder says.
        """
        self.reading, self.encoder, self.level = reading, encoder, level
        device = reading.owner_N.device
        streams = [randomness.stream(*purpose, each.number) for each in reading.completions_B]
        if level == "sequence":
            rows = [torch.from_numpy(random.random((1, bits), dtype="float32")) for random in streams]
            self.uniforms = torch.cat(rows).to(device)
        else:
            self.uniforms = torch.empty(len(reading.owner_N), bits, device=device)
            for random, tokens in zip(streams, reading.tokens_B, strict=True):
                drawn = torch.from_numpy(random.random((len(tokens), bits), dtype="float32"))
                self.uniforms[torch.tensor(tokens, device=device)] = drawn.to(device)
        self.is_untold_B = torch.tensor([each.number in untold for each in reading.completions_B], device=device)
        self.logits_CH: Tensor | None = None

    def signs(self, states_ND: Tensor) -> Float[Tensor, "N H"]:
        """Bits of every token's code as −1 and 1; the gradient is that of the encoder's logits."""
        states_ND = states_ND.to(torch.promote_types(states_ND.dtype, torch.float32))
        if self.level == "sequence":
            logits_BH = self._read(states_ND).masked_fill(self.is_untold_B[:, None], 0.0)
            return signs(logits_BH, draw_bits(logits_BH, self.uniforms)).index_select(0, self.reading.owner_N)
        # Tokens of a prompt but its last have codes of the prior: at logits of 0 each bit is on half of the time.
        logits_NH = states_ND.new_zeros(self.uniforms.shape)
        logits_NH = logits_NH.index_copy(0, self.reading.sources_K, self._read(states_ND))
        logits_NH = logits_NH.masked_fill(self.is_untold_B[self.reading.owner_N, None], 0.0)
        return signs(logits_NH, draw_bits(logits_NH, self.uniforms))

    def kl_CH(self) -> Float[Tensor, "C H"]:
        """KL of each bit of each code from the prior, in nats; known once the codes have been read."""
        assert self.logits_CH is not None
        return kl_to_uniform(self.logits_CH)

    def _read(self, states_ND: Tensor) -> Float[Tensor, "C H"]:
        """Logits of the codes, balanced over the completions of each problem."""
        reading = self.reading
        if self.encoder is None:
            count = len(reading.completions_B if self.level == "sequence" else reading.sources_K)
            return states_ND.new_zeros(count, self.uniforms.shape[1])
        logits_BTH = self.encoder(states_ND, reading)
        lengths_B = reading.real_BT.sum(-1)
        if self.level == "sequence":
            logits_CH = (logits_BTH * reading.real_BT[..., None]).sum(1) / lengths_B[:, None]
            sizes = [*reading.parts]
        else:
            # The last token of a completion predicts nothing.
            predicts_BT = torch.arange(reading.real_BT.shape[1], device=lengths_B.device) < lengths_B[:, None] - 1
            logits_CH = logits_BTH[predicts_BT]
            counts = (lengths_B - 1).tolist()
            sizes = [
                sum(counts[end - size : end])
                for size, end in zip(reading.parts, accumulate(reading.parts), strict=True)
            ]
        self.logits_CH = torch.cat([balanced(part) for part in logits_CH.split(sizes)])
        return self.logits_CH
