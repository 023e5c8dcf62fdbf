r"""Codes of H bits: how they are drawn, how they become vectors, and what they cost.

A latent Z_t is one of 2^H codes. The encoder gives it H logits L_{t,h}, and its bits are independent,

    B_{t,h} ~ Bernoulli(σ(L_{t,h}))                                                   (6)

so that the divergence from the uniform prior is a sum over the bits,

    KL_t = Σ_h [log 2 − entropy(σ(L_{t,h}))]                                            (4)

and the first κ of it are free, for each token by itself: max(0, KL_t − κ)                (5)

Numbers are those of the equations of arXiv 2510.17558. Lengths are in nats unless a name says bits.
"""

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

BIT = math.log(2.0)
"""Nats of one bit."""

HALVINGS = 30
"""Steps of bisection in `balanced`."""

FLATTEST = 1e-4
"""Least slope by which `balanced` divides: where all bits are certain there is no direction."""


def draw_bits(logits_H: Tensor, uniforms_H: Tensor) -> Tensor:
    """Bits, 0 or 1, of logits (…, H) and uniform numbers in [0, 1) of the same shape (equation 6)."""
    return (uniforms_H < torch.sigmoid(logits_H.detach())).to(logits_H.dtype)


def balanced(logits_H: Tensor, lean: float = 0.0) -> Tensor:
    """Logits (…, H) of many tokens, shifted so that each bit is on half of the time over all of them.

    The prior is uniform: a bit that is nearly always on costs as much as one that tells something, says nothing, and is
    wrong half of the time once codes are drawn from the prior. Free bits do not charge for it. What is rare has to be
    told by several bits together then, and a code of the prior tells it about as rarely. Not of the paper.

    Args:
        lean: share of the way from there to logits of mean 0, whose bits may be on rarely. A rare thing is then told by
            fewer bits, more surely, and codes of the prior tell it more often than it is; at 1 far too often.
    """
    if lean:
        return (1 - lean) * balanced(logits_H) + lean * (logits_H - logits_H.flatten(0, -2).mean(0))
    flat_BH = logits_H.flatten(0, -2)
    with torch.no_grad():
        # Between the lowest and the highest logit the mean falls from above a half to below it.
        low_H, high_H = flat_BH.min(0).values, flat_BH.max(0).values
        for _ in range(HALVINGS):
            shift_H = (low_H + high_H) / 2
            is_low_H = torch.sigmoid(flat_BH - shift_H).mean(0) > 0.5
            low_H, high_H = torch.where(is_low_H, shift_H, low_H), torch.where(is_low_H, high_H, shift_H)
        shift_H = (low_H + high_H) / 2
        on_BH = torch.sigmoid(flat_BH - shift_H)
        slope_H = (on_BH * (1 - on_BH)).mean(0).clamp(min=FLATTEST)
    # One step of Newton's, whose value is next to nothing and whose gradient is that of the shift itself.
    return logits_H - (shift_H + (torch.sigmoid(flat_BH - shift_H).mean(0) - 0.5) / slope_H)


def signs(logits_H: Tensor, bits_H: Tensor) -> Tensor:
    """Bits (…, H) as −1 and 1: the value exactly that of the bits, the gradient that of 2 sigmoid(logits) − 1."""
    on_H = torch.sigmoid(logits_H)
    # In this order the bracket is exactly zero, and the value that of the bits.
    return 2 * (bits_H + (on_H - on_H.detach())) - 1


def kl_to_uniform(logits_H: Tensor) -> Tensor:
    """KL of independent bits (…, H) from uniform ones, each bit in nats (equation 4, before its sum over the bits)."""
    on_H = torch.sigmoid(logits_H)
    return BIT + on_H * nn.functional.logsigmoid(logits_H) + (1 - on_H) * nn.functional.logsigmoid(-logits_H)


def beyond_free(kl: Tensor, kappa: float) -> Tensor:
    """What exceeds the free nats `kappa`, each element by itself (the hinge of equation 5)."""
    return (kl - kappa).clamp(min=0.0)


class CodeMap(nn.Module):
    """A map from codes to vectors: R = Linear(Z), with a gradient for the logits that the bits were drawn from."""

    @abstractmethod
    def forward(self, logits_H: Tensor, bits_H: Tensor) -> Tensor:
        """Vectors (…, D) of bits (…, H). Their value depends on the bits alone, and is exactly that of the code."""


class TableMap(CodeMap):
    r"""A vector for each of the 2^H codes: equations (7) and (8).

    Y is the one-hot vector of the code, G the product Π_h P(B_h = U_h(d − 1)) over all 2^H codes, and Z = Y + G −
    detach(G). The gradient that L_h would get from G is a sum over 2^H columns. Here the bits other than h are taken as
    they were drawn, which is an unbiased estimate by two rows of the table, and all that the table is asked for:

        ∂/∂L_h = p_h (1 − p_h) ⟨g, W[b with b_h = 1] − W[b with b_h = 0]⟩
    """

    def __init__(self, bits: int, width: int, std: float) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2**bits, width) * std)

    def forward(self, logits_H: Tensor, bits_H: Tensor) -> Tensor:
        found: Tensor = _TableRows.apply(logits_H, bits_H, self.table)  # type: ignore[no-untyped-call]
        return found


class AdditiveMap(CodeMap):
    r"""A vector for each bit, added or taken away: R = Σ_h W_h (2 b_h − 1).

    The table's special case without interactions between bits. Codes have mean zero, and the gradient that (8) gives a
    logit is exact: ∂/∂L_h = p_h (1 − p_h) · 2 ⟨g, W_h⟩.
    """

    def __init__(self, bits: int, width: int, std: float) -> None:
        super().__init__()
        self.signed = nn.Parameter(torch.randn(bits, width) * (std / bits**0.5))

    def forward(self, logits_H: Tensor, bits_H: Tensor) -> Tensor:
        return signs(logits_H, bits_H) @ self.signed


class _TableRows(torch.autograd.Function):
    """Rows of a table by code, with the gradient of `TableMap`."""

    @staticmethod
    def forward(ctx: Any, logits_H: Tensor, bits_H: Tensor, table: Tensor) -> Tensor:
        powers_H = 2 ** torch.arange(bits_H.shape[-1], device=bits_H.device)
        codes = (bits_H.long() * powers_H).sum(-1)
        ctx.save_for_backward(logits_H, bits_H, table, codes, powers_H)
        return table[codes]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_D,) = grads
        logits_H, bits_H, table, codes, powers_H = ctx.saved_tensors
        on_H = torch.sigmoid(logits_H)
        here = (grad_D * table[codes]).sum(-1)
        grad_H = torch.empty_like(logits_H)
        for h, power in enumerate(powers_H.tolist()):
            signs = 2 * bits_H[..., h] - 1
            flipped = codes - (signs.long() * power)
            there = (grad_D * table[flipped]).sum(-1)
            grad_H[..., h] = on_H[..., h] * (1 - on_H[..., h]) * signs * (here - there)
        grad_table = torch.zeros_like(table).index_add_(0, codes.flatten(), grad_D.reshape(-1, table.shape[1]))
        return grad_H, None, grad_table
