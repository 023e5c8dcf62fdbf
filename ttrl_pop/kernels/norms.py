"""RMSNorm, and the sum of states with a row of offsets for each: with gradients of their own, in one pass over memory
where there is a CUDA GPU (`ttrl_pop.kernels.norm_kernels`).

Without gradients float32 on a CPU has loops of its own (`ttrl_pop.kernels.loops`). But for these, values of norms are
those of transformers' (to the bit on a CPU in float32 and bf16), and but for float64, in which those pass through
float32 and these do not.
"""

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ttrl_pop.kernels import loops

FEW_ROWS = 256
"""Rows of offsets up to which their gradient is a product."""

Gain = Literal["weight", "one plus weight"]
"""What an RMSNorm multiplies by; the second is Gemma's."""
ADDED: dict[Gain, float] = {"weight": 0.0, "one plus weight": 1.0}
"""What each adds to the weight."""


def rms_norm(x: Float[Tensor, "*B D"], weight: Float[Tensor, "D"], eps: float, gain: Gain) -> Float[Tensor, "*B D"]:
    """x / √(mean(x²) + eps) · gain (arXiv 1910.07467), computed in float32 or wider."""
    if torch.is_grad_enabled():
        y: Tensor = _RmsNorm.apply(x, weight, eps, gain)  # type: ignore[no-untyped-call]
        return y
    if has_kernels(x):
        return _by_kernel(x, weight, eps, gain, False)[0].view(x.shape)
    if loops.are_for(x) and weight.dtype == x.dtype:
        return loops.rms_norm(x, loops.Norm(weight, eps, ADDED[gain]))
    normed, _ = _normed(x, eps)
    if gain == "weight":
        return normed.to(x.dtype).mul_(weight)
    return normed.mul_(1.0 + weight.to(normed.dtype)).to(x.dtype)


def offset_rows(
    x_ND: Float[Tensor, "N D"], offsets_MD: Float[Tensor, "M D"], row_N: Int[Tensor, "N"]
) -> Float[Tensor, "N D"]:
    """x + offsets[row], summed in the wider type of the two and given in that of x: in bf16 half of a small offset
    would be rounded away."""
    if has_kernels(x_ND):
        y: Tensor = _OffsetRows.apply(x_ND, offsets_MD, row_N)  # type: ignore[no-untyped-call]
        return y
    if loops.are_for(x_ND) and offsets_MD.dtype == x_ND.dtype:
        return loops.offset_rows(x_ND, offsets_MD, row_N)
    # Added to the copies themselves: in place on a view of them the backward pass would copy its gradient.
    wide = torch.promote_types(offsets_MD.dtype, x_ND.dtype)
    return offsets_MD.index_select(0, row_N).to(wide).add_(x_ND).to(x_ND.dtype)


class AddOffset:
    """A forward hook of a norm: it adds a row of offsets to the states of each token, or nothing.

    Whoever computes the norm without its module, and so without its hooks, asks it for the `rows`.
    """

    def __init__(self, rows: Callable[[], tuple[Float[Tensor, "M D"], Int[Tensor, "N"]] | None]) -> None:
        """`rows`: the offsets, and which of them each token has; None for nothing."""
        self.rows = rows

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        found = self.rows()
        return None if found is None else offset_rows(output.flatten(0, -2), *found).view(output.shape)


def has_kernels(x: Tensor) -> bool:
    """Whether there are kernels for tensors like `x`."""
    return x.device.type == "cuda" and x.dtype in (torch.float32, torch.bfloat16) and _has_triton()


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _by_kernel(x: Tensor, weight: Tensor, eps: float, gain: Gain, learns: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """The norm of the rows of x, those rows, and where it `learns` what they were divided by, inverted."""
    from ttrl_pop.kernels import norm_kernels

    rows = x.reshape(-1, x.shape[-1]).contiguous()
    y, inverse = norm_kernels.norm_forward(rows, weight, eps, gain != "weight", learns)
    return y, rows, inverse


def _normed(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x / √(mean(x²) + eps) in float32 or wider, and what x was multiplied by."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(eps))
    return wide * inverse, inverse


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, gain: Gain) -> Tensor:
        ctx.gain, ctx.by_kernel = gain, has_kernels(x)
        if ctx.by_kernel:
            y, rows, inverse = _by_kernel(x, weight, eps, gain, True)
            ctx.save_for_backward(rows, inverse, weight)
            return y.view(x.shape)
        normed, inverse = _normed(x, eps)
        ctx.save_for_backward(normed, inverse, weight)
        if gain == "weight":
            return weight * normed.to(x.dtype)
        return (normed * (1.0 + weight.to(normed.dtype))).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        kept, inverse, weight = ctx.saved_tensors
        if ctx.by_kernel:
            from ttrl_pop.kernels import norm_kernels

            rows = grad.reshape(kept.shape).contiguous()
            slopes = norm_kernels.norm_backward(rows, kept, weight, inverse, ctx.gain != "weight")
            return slopes.view(grad.shape), None, None, None
        factor = weight.to(kept.dtype)
        scaled = grad.to(kept.dtype) * (factor if ctx.gain == "weight" else 1.0 + factor)
        along = (scaled * kept).mean(-1, keepdim=True)
        return scaled.addcmul_(kept, along, value=-1).mul_(inverse).to(grad.dtype), None, None, None


class _OffsetRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, offsets_MD: Tensor, row_N: Tensor) -> Tensor:
        from ttrl_pop.kernels import norm_kernels

        ctx.save_for_backward(row_N)
        ctx.shape, ctx.dtype = offsets_MD.shape, offsets_MD.dtype
        return norm_kernels.offset_rows(x_ND.contiguous(), offsets_MD.contiguous(), row_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (row_N,) = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return grad_ND, None, None
        rows, wide_ND = ctx.shape[0], grad_ND.to(ctx.dtype)
        if rows > FEW_ROWS:
            return grad_ND, wide_ND.new_zeros(ctx.shape).index_add_(0, row_N, wide_ND), None
        # Thousands of tokens that add to one row in memory would wait for each other.
        owned_MN = torch.arange(rows, device=row_N.device)[:, None] == row_N
        return grad_ND, owned_MN.to(ctx.dtype) @ wide_ND, None
