"""The Free Transformer: a decoder that a latent code enters at its middle layer (arXiv 2510.17558).

    X = the lower half of the blocks, of the tokens
    L = encoder(X), Z ~ L in training; Z uniform in generation
    the first block of the upper half: queries from X, keys and values from X + R(Z); then the others

Lower and upper half are shared by training and generation, the encoder is for training alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ttrl_pop.latent.codes import AdditiveMap, CodeMap, TableMap, balanced, beyond_free, draw_bits, kl_to_uniform
from ttrl_pop.latent.encoder import Encoder
from ttrl_pop.latent.layers import EPSILON, Block, Past, initialise, rotary


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Free Transformer, and how loud its parts begin."""

    vocabulary: int
    length: int
    """Longest text, in tokens."""
    width: int = 64
    blocks: int = 4
    heads: int = 4
    bits: int = 16
    """H: bits of a code."""
    table: bool = False
    """A vector for each code (the paper's map) in place of one for each bit."""
    rotary_base: float = 100.0
    """For texts of some 60 tokens; the usual 10,000 hardly turns over such a length."""
    loudness: float = 1.0
    """Root mean square of the injection R at the start; that of X is about 1."""
    places: bool = False
    """Give what the encoder reads its positions, in place of heads that begin by looking ahead."""
    lean: float = 0.0
    """How far bits may lean, as `ttrl_pop.latent.codes.balanced` has it."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of a batch by its parts, in nats."""

    cross_entropy: Tensor
    """Mean over the predicted tokens, under codes of the encoder."""
    kl_BT: Tensor
    """KL of each token's code from the uniform prior."""

    def total(self, kappa: float) -> Tensor:
        """Cross-entropy and what the KL of each token exceeds `kappa` nats by (equation 5)."""
        return self.cross_entropy + beyond_free(self.kl_BT, kappa).mean()


class FreeTransformer(nn.Module):
    """The paper's model in plain torch.

    Shapes: tokens (B, T), codes as bits (B, T, H), each 0 or 1.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.middle = shape.blocks // 2
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads) for _ in range(shape.blocks))
        kind = TableMap if shape.table else AdditiveMap
        self.code_map: CodeMap = kind(shape.bits, shape.width, shape.loudness)
        self.before_head = nn.RMSNorm(shape.width, EPSILON)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        initialise(self)
        width = shape.width
        self.encoder = Encoder(width, width, shape.heads, shape.bits, shape.rotary_base, shape.places)
        cosines, sines = rotary(shape.length, shape.width // shape.heads, shape.rotary_base)
        self.register_buffer("cosines_TW", cosines, persistent=False)
        self.register_buffer("sines_TW", sines, persistent=False)

    def lower(self, tokens_BT: Tensor, pasts: "Pasts | None" = None) -> Tensor:
        """Hidden states X (B, T, D) in the middle."""
        states_BTD: Tensor = self.embedding(tokens_BT)
        return self._through(range(self.middle), states_BTD, None, pasts)

    def upper(self, states_BTD: Tensor, injection_BTD: Tensor, pasts: "Pasts | None" = None) -> Tensor:
        """Logits (B, T, vocabulary) of hidden states in the middle and what the codes inject."""
        states_BTD = self._through(range(self.middle, len(self.blocks)), states_BTD, injection_BTD, pasts)
        logits_BTV: Tensor = self.head(self.before_head(states_BTD))
        return logits_BTV

    def encode(self, states_BTD: Tensor) -> Tensor:
        """Bit logits (B, T, H) of hidden states in the middle, balanced over all texts and tokens."""
        return balanced(self.encoder(states_BTD, self._positions(states_BTD.shape[1])), self.shape.lean)

    def loss(self, tokens_BT: Tensor, uniforms_BTH: Tensor) -> Loss:
        """The loss of texts, the codes of which are drawn from the encoder by `uniforms_BTH`.

        The last token predicts nothing, so its code is not charged.
        """
        states_BTD = self.lower(tokens_BT)
        bit_logits_BTH = self.encode(states_BTD)
        injection_BTD = self.code_map(bit_logits_BTH, draw_bits(bit_logits_BTH, uniforms_BTH))
        entropy = cross_entropy(self.upper(states_BTD, injection_BTD), tokens_BT)
        return Loss(entropy, kl_to_uniform(bit_logits_BTH)[:, :-1].sum(-1))

    def logits(self, tokens_BT: Tensor, bits_BTH: Tensor, pasts: "Pasts | None" = None) -> Tensor:
        """Logits (B, T, vocabulary) under given codes; the tokens stand behind those that `pasts` have seen."""
        states_BTD = self.lower(tokens_BT, pasts)
        found = self.upper(states_BTD, self.code_map(torch.zeros_like(bits_BTH), bits_BTH), pasts)
        if pasts is not None:
            pasts.length += tokens_BT.shape[1]
        return found

    @torch.no_grad()
    def generate(self, prompts_BT: Tensor, bits_BTH: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
        """Texts (B, T) that continue the prompts, as long as there are codes; the prompt's tokens have codes too.

        One row of codes for a group of texts, or fresh ones for each, is the caller's choice of `bits_BTH`.
        """
        tokens_BT, read = prompts_BT, 0
        pasts = Pasts(len(self.blocks))
        while tokens_BT.shape[1] < bits_BTH.shape[1]:
            end = tokens_BT.shape[1]
            logits_BV = self.logits(tokens_BT[:, read:], bits_BTH[:, read:end], pasts)[:, -1] / temperature
            drawn_B1 = torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)
            tokens_BT, read = torch.cat([tokens_BT, drawn_B1], dim=1), end
        return tokens_BT

    def _through(
        self, places: range, states_BTD: Tensor, injection_BTD: Tensor | None, pasts: "Pasts | None"
    ) -> Tensor:
        """States behind the blocks at these places, of which the first takes the injection."""
        positions = self._positions(states_BTD.shape[1], pasts.length if pasts else 0)
        for place in places:
            entering_BTD = injection_BTD if place == places.start else None
            past = pasts.of_blocks[place] if pasts else None
            states_BTD = self.blocks[place](states_BTD, positions, entering_BTD, past)
        return states_BTD

    def _positions(self, length: int, start: int = 0) -> tuple[Tensor, Tensor]:
        cosines_TW, sines_TW = self.get_buffer("cosines_TW"), self.get_buffer("sines_TW")
        return cosines_TW[start : start + length], sines_TW[start : start + length]


class Pasts:
    """What the blocks of a model have read of a text that is being written."""

    def __init__(self, blocks: int) -> None:
        self.of_blocks = [Past() for _ in range(blocks)]
        self.length = 0
        """Tokens that were read."""


def cross_entropy(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """Mean over the predicted tokens of −log p, in nats."""
    return nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten())
