"""Layers in forms that pass over memory less often, with gradients of their own.

Values are those of the layers that they stand for. Frozen weights get no gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ttrl_pop.kernels import loops
from ttrl_pop.kernels.joined import Joined
from ttrl_pop.kernels.loops import Columns
from ttrl_pop.kernels.matmul import LaidOutWeight, product
from ttrl_pop.kernels.norms import has_kernels


@dataclass(slots=True)
class Projection:
    """A linear layer x·Wᵀ + b, or with an adapter x·Wᵀ + b + scale · x·Aᵀ·Bᵀ (arXiv 2106.09685)."""

    weight: Float[Tensor, "O I"]
    bias: Float[Tensor, "O"] | None = None
    down: Float[Tensor, "R I"] | None = None
    """A."""
    up: Float[Tensor, "O R"] | None = None
    """B."""
    scale: float = 1.0
    merged: Float[Tensor, "O I"] | None = None
    """Memory for W' = W + scale · B · A; None where the adapter is computed beside W."""
    laid_out: LaidOutWeight | None = None
    """What multiplies x, W' where it is kept, else W, laid out for it."""
    joined: Joined | None = None
    """What multiplies x for this layer and others that read it, which `products` asks."""
    _merged_at: tuple[int, int] = field(default=(-1, -1), init=False)
    _factors: tuple[Tensor, ...] = field(default=(), init=False)
    _factors_at: tuple[int, int] = field(default=(-1, -1), init=False)

    def multiplier(self) -> Float[Tensor, "O I"]:
        """W', which is made anew where A or B have changed, or W."""
        if self.merged is None or self.down is None or self.up is None:
            return self.weight
        # In-place updates raise a tensor's version.
        versions = (self.down._version, self.up._version)
        if versions != self._merged_at:
            with torch.no_grad():
                torch.addmm(self.weight, self.up, self.down, alpha=self.scale, out=self.merged)
            self._merged_at = versions
        return self.merged

    def factors(self) -> tuple[Tensor, ...]:
        """A and B in the type of W, made anew where they have changed; nothing without an adapter.

        An adapter is kept wider than bf16 weights, so that small updates add up in it; what it adds to their product
        is computed in their type, as the product itself is."""
        if self.down is None or self.up is None:
            return ()
        if self.down.dtype == self.weight.dtype:
            return self.down, self.up
        versions = (self.down._version, self.up._version)
        if versions != self._factors_at:
            with torch.no_grad():
                own = (self.down, self.up)
                if self._factors:
                    # In the same memory, which a recorded graph goes on reading.
                    for narrow, wide in zip(self._factors, own, strict=True):
                        narrow.copy_(wide)
                else:
                    self._factors = tuple(wide.to(self.weight.dtype) for wide in own)
            self._factors_at = versions
        return self._factors

    def times(self, x: Float[Tensor, "N I"]) -> Float[Tensor, "N O"]:
        """What the layer computes, without gradient."""
        if self._fits_kernel(x):
            from ttrl_pop.kernels import lora_kernels

            down, up = self.factors()
            return lora_kernels.adapted(x.contiguous(), self.weight, self.bias, down, up, self.scale)
        weight = self.multiplier()
        y = self.laid_out.times(x, self.bias) if self.laid_out else product(x, weight, self.bias)
        if self.down is None or self.merged is not None:
            return y
        down, up = self.factors()
        # In place: a new sum would begin with a copy.
        return y.addmm_(product(x, down), up.t(), alpha=self.scale)

    def _fits_kernel(self, x: Float[Tensor, "N I"]) -> bool:
        """Whether one kernel computes W and adapter side by side, and faster."""
        if self.down is None or self.merged is not None or self.weight.dtype != torch.bfloat16 or not has_kernels(x):
            return False
        from ttrl_pop.kernels import lora_kernels

        return self.weight.is_contiguous() and lora_kernels.is_faster(x.shape[0], *self.weight.shape[::-1])


def products(x: Float[Tensor, "N I"], layers: Sequence[Projection]) -> list[Columns]:
    """What each of these layers computes, without gradient: all of them are joined with each other, or none is."""
    if joined := layers[0].joined:
        return joined.times(x)
    return [Columns(y, 0, y.shape[1]) for y in (layer.times(x) for layer in layers)]


def linear(x: Float[Tensor, "*B I"], layer: Projection) -> Float[Tensor, "*B O"]:
    """`layer` of x, with gradients for x, A and B."""
    if not torch.is_grad_enabled():
        rows = layer.times(x.reshape(-1, x.shape[-1]))
        return rows.view(*x.shape[:-1], rows.shape[-1])
    y: Tensor = _Linear.apply(x, layer, layer.down, layer.up)  # type: ignore[no-untyped-call]
    return y


def gated_mlp(x: Float[Tensor, "*B D"], gate: Projection, up: Projection, down: Projection) -> Float[Tensor, "*B D"]:
    """down(silu(gate(x)) ∘ up(x)) (SwiGLU, arXiv 2002.05202), with gradients for x and every A and B.

    What `down` reads is not kept for the backward pass, but computed again there.
    """
    if not torch.is_grad_enabled():
        rows = x.reshape(-1, x.shape[-1])
        gates, ups = products(rows, (gate, up))
        if loops.are_for(gates.matrix):
            opened = loops.open_gates(gates, ups)
        else:
            opened = nn.functional.silu(gates.states(), inplace=True).mul_(ups.states())
        rows = down.times(opened)
        return rows.view(*x.shape[:-1], rows.shape[-1])
    adapters = [matrix for layer in (gate, up, down) for matrix in (layer.down, layer.up)]
    y: Tensor = _GatedMlp.apply(x, (gate, up, down), *adapters)  # type: ignore[no-untyped-call]
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Projection, *adapter: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = layer.times(rows)
        ctx.scale, ctx.is_merged = layer.scale, layer.merged is not None
        ctx.save_for_backward(rows, layer.multiplier(), *(layer.factors() or adapter))
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, multiplier, down, up = ctx.saved_tensors
        layer = _Backward(multiplier, down, up, ctx.scale, ctx.is_merged)
        grad_rows = grad.reshape(-1, grad.shape[-1])
        narrow = layer.narrow(grad_rows)
        grad_down, grad_up = layer.adapter_grads(grad_rows, narrow, rows)
        grad_x = layer.input_grad(grad_rows, narrow) if ctx.needs_input_grad[0] else None
        return None if grad_x is None else grad_x.view(*grad.shape[:-1], rows.shape[-1]), None, grad_down, grad_up


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layers: tuple[Projection, Projection, Projection], *adapters: Tensor | None
    ) -> Tensor:
        gate, up, down = layers
        rows = x.reshape(-1, x.shape[-1])
        gates, ups = gate.times(rows), up.times(rows)
        y = down.times(nn.functional.silu(gates).mul_(ups))
        ctx.settings = [(layer.scale, layer.merged is not None) for layer in layers]
        factors = [matrix for layer in layers for matrix in layer.factors() or (None, None)]
        ctx.save_for_backward(rows, gates, ups, *(layer.multiplier() for layer in layers), *factors)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, gates, ups, *matrices = ctx.saved_tensors
        gate, up, down = (
            _Backward(multiplier, a, b, scale, is_merged)
            for multiplier, a, b, (scale, is_merged) in zip(
                matrices[:3], matrices[3::2], matrices[4::2], ctx.settings, strict=True
            )
        )
        grad_rows = grad.reshape(-1, grad.shape[-1])
        narrow = down.narrow(grad_rows)
        grad_product = down.input_grad(grad_rows, narrow)
        opened = nn.functional.silu(gates)
        grad_ups = grad_product * opened
        # From here on memory is used again: fresh memory costs a pass of its own.
        of_down = down.adapter_grads(grad_rows, narrow, opened.mul_(ups))
        grad_gates = grad_product.mul_(ups)
        torch.ops.aten.silu_backward.grad_input(grad_gates, gates, grad_input=grad_gates)
        narrow_gates, narrow_ups = gate.narrow(grad_gates), up.narrow(grad_ups)
        of_gate, of_up = (
            gate.adapter_grads(grad_gates, narrow_gates, rows),
            up.adapter_grads(grad_ups, narrow_ups, rows),
        )
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = up.input_grad(grad_ups, narrow_ups, onto=gate.input_grad(grad_gates, narrow_gates))
            grad_x = grad_x.view(*grad.shape[:-1], rows.shape[-1])
        return grad_x, None, *of_gate, *of_up, *of_down


@dataclass(frozen=True, slots=True)
class _Backward:
    """A `Projection` as its backward pass sees it."""

    multiplier: Tensor
    down: Tensor | None
    """A, in the type of W."""
    up: Tensor | None
    """B, in the type of W."""
    scale: float
    is_merged: bool

    def narrow(self, grad_NO: Tensor) -> Tensor | None:
        """[N, R]: the gradient of x·Aᵀ; None without an adapter."""
        return None if self.up is None else product(grad_NO, self.up.t()).mul_(self.scale)

    def adapter_grads(self, grad_NO: Tensor, narrow_NR: Tensor | None, x_NI: Tensor) -> tuple[Tensor | None, ...]:
        """[R, I] and [O, R]: the gradients of A and B."""
        if narrow_NR is None or self.down is None:
            return None, None
        # With the thin side first, products over all rows are at their fastest.
        grad_up = product(product(x_NI, self.down).t(), grad_NO.t())
        return product(narrow_NR.t(), x_NI.t()), grad_up.mul_(self.scale).t()

    def input_grad(self, grad_NO: Tensor, narrow_NR: Tensor | None, onto: Tensor | None = None) -> Tensor:
        """[N, I]: the gradient of x, added to `onto` in place."""
        grad_x = product(grad_NO, self.multiplier.t())
        if onto is not None:
            grad_x = onto.add_(grad_x)
        if self.is_merged or narrow_NR is None or self.down is None:
            return grad_x
        return grad_x.addmm_(narrow_NR, self.down)
