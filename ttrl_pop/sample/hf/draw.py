"""A uniform number → a token: sampling by the inverse distribution function."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ttrl_pop.kernels import loops
from ttrl_pop.kernels.cuda import cumulative_
from ttrl_pop.model.forward import at_temperature

CDF_NUMBERS = {"cuda": 2**27, "mps": 2**25}
"""Probabilities that are held at once, by type of device; 2²⁰ on others, which a core's own cache holds."""


def draw(
    logits_BV: Float[Tensor, "B V"], uniforms_B: Float[Tensor, "B"], temperature: float, top_p: float = 1.0
) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
    """A token for each row, and its log-probability under the distribution that it was drawn from.

    Inverse transform sampling: the first token whose cumulative probability exceeds the row's uniform number in
    [0, 1). Temperature 0 takes the likeliest token and gives its log-probability at temperature 1. `top_p` keeps the
    likeliest tokens that together reach it (nucleus sampling, arXiv 1904.09751), in the renormalised distribution.
    Where logits are not finite the log-probability is not a number.
    """
    if temperature > 0 and top_p == 1 and loops.are_for(logits_BV):
        return loops.draw(logits_BV, uniforms_B.to(logits_BV.dtype), temperature)
    tokens, logprobs = [], []
    rows = max(1, CDF_NUMBERS.get(logits_BV.device.type, 2**20) // logits_BV.shape[1])
    for logits_RV, uniforms_R in zip(torch.split(logits_BV, rows), torch.split(uniforms_B, rows), strict=True):
        wide = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
        logp = torch.log_softmax(at_temperature(wide, temperature), dim=-1)
        if temperature == 0:
            token = logp.argmax(-1)
        else:
            if top_p < 1:
                logp = _nucleus(logp, top_p)
            cdf = cumulative_(logp.exp())
            total = cdf[:, -1:]
            u = uniforms_R.to(cdf.device, cdf.dtype)[:, None]
            # Strictly below the total, so that rounding cannot select a token of probability zero at the end.
            point = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))
            # Where logits are not finite no token is right; the log-probability says so.
            token = torch.searchsorted(cdf, point, right=True)[:, 0].clamp_(max=cdf.shape[-1] - 1)
        tokens.append(token)
        logprobs.append(logp.gather(-1, token[:, None])[:, 0])
    return torch.cat(tokens), torch.cat(logprobs)


def _nucleus(logp_BV: Tensor, top_p: float) -> Tensor:
    ordered, index = logp_BV.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    kept = torch.zeros_like(before, dtype=torch.bool).scatter(-1, index, before < top_p)
    return torch.log_softmax(logp_BV.masked_fill(~kept, -torch.inf), dim=-1)
