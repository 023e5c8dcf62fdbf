"""Rotary positions of queries and keys in one pass, with a gradient of their own, where there is a CUDA GPU
(`ttrl_pop.kernels.rotary_kernels`)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ttrl_pop.kernels.norms import has_kernels

Rotary = Callable[..., tuple[Tensor, Tensor]]
"""What a family of transformers calls `apply_rotary_pos_emb`: queries and keys [1, heads, N, D], cosines and sines
[1, N, D] → both, turned."""


def fused(own: Rotary) -> Rotary:
    """`own` in one pass over memory for tensors that there are kernels for."""

    def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *others: Any, **named: Any) -> tuple[Tensor, Tensor]:
        fits = q.ndim == 4 and len(q) == 1 and cos.shape == sin.shape == (1, q.shape[2], q.shape[3])
        fits = fits and k.dtype == q.dtype and k.shape[::2] == q.shape[::2] and k.shape[3] == q.shape[3]
        if others or named or not fits or q.shape[3] % 2 or cos.dtype != q.dtype:
            return own(q, k, cos, sin, *others, **named)
        if not has_kernels(q):
            return own(q, k, cos, sin)
        turned: tuple[Tensor, Tensor] = _Rotary.apply(q, k, cos, sin)  # type: ignore[no-untyped-call]
        return turned

    rotary.own = own  # type: ignore[attr-defined]
    return rotary


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        from ttrl_pop.kernels import rotary_kernels

        ctx.save_for_backward(cos, sin)
        return rotary_kernels.rotate(q, k, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor, Tensor, None, None]:
        from ttrl_pop.kernels import rotary_kernels

        cos, sin = ctx.saved_tensors
        return *rotary_kernels.rotate(grad_q, grad_k, cos, sin, back=True), None, None
