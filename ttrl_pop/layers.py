"""Layers in forms that pass over memory less often, with gradients of their own.

`fuse(network)` gives RMSNorm and LoRA linear layers the forwards below. An RMSNorm is known by what it computes, not by
its name: it is replaced where its output agrees. Values are those of the layers replaced (of a norm to the bit in
float32 and bf16), but for float64, in which norms of transformers pass through float32 and these do not.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Gain = Literal["weight", "one plus weight"]
"""What an RMSNorm multiplies by; the second is Gemma's."""


def fuse(network: nn.Module) -> None:
    """Give the layers of `network` that are known here their faster forward. Their frozen weights get no gradient."""
    for module in network.modules():
        if isinstance(module, lora.Linear) and type(module.base_layer) is nn.Linear:
            _fuse_lora(module)
        elif "rmsnorm" in type(module).__name__.lower():
            _fuse_norm(module)


def rms_norm(x: Float[Tensor, "*B D"], weight: Float[Tensor, "D"], eps: float, gain: Gain) -> Float[Tensor, "*B D"]:
    """x / √(mean(x²) + eps) · gain (arXiv 1910.07467), computed in float32 or wider."""
    y: Tensor = _RmsNorm.apply(x, weight, eps, gain)  # type: ignore[no-untyped-call]
    return y


def lora_linear(
    x: Float[Tensor, "*B I"],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, "O"] | None,
    down: Float[Tensor, "R I"],
    up: Float[Tensor, "O R"],
    scale: float,
) -> Float[Tensor, "*B O"]:
    """x·Wᵀ + b + scale · x·Aᵀ·Bᵀ (arXiv 2106.09685) with gradients for x, A = `down` and B = `up`."""
    y: Tensor = _LoraLinear.apply(x, weight, bias, down, up, scale)  # type: ignore[no-untyped-call]
    return y


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, gain: Gain) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(eps))
        normed = wide * inverse
        ctx.save_for_backward(normed, inverse, weight)
        ctx.gain = gain
        if gain == "weight":
            return weight * normed.to(x.dtype)
        return (normed * (1.0 + weight.to(normed.dtype))).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        normed, inverse, weight = ctx.saved_tensors
        factor = weight.to(normed.dtype)
        scaled = grad.to(normed.dtype) * (factor if ctx.gain == "weight" else 1.0 + factor)
        along = (scaled * normed).mean(-1, keepdim=True)
        return scaled.addcmul_(normed, along, value=-1).mul_(inverse).to(grad.dtype), None, None, None


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = nn.functional.linear(rows, weight, bias)
        narrow = rows.to(down.dtype) @ down.t()
        if y.dtype == up.dtype:
            y.addmm_(narrow, up.t(), alpha=scale)
        else:
            # The adapter is wider than the base weights: the sum is taken in its type.
            y = torch.addmm(y.to(up.dtype), narrow, up.t(), alpha=scale).to(y.dtype)
        ctx.save_for_backward(rows, weight, down, up, narrow)
        ctx.scale = scale
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, Tensor, Tensor, None]:
        rows, weight, down, up, narrow = ctx.saved_tensors
        grad_rows = grad.reshape(-1, grad.shape[-1])
        wide = grad_rows.to(up.dtype)
        grad_narrow = (wide @ up).mul_(ctx.scale)
        grad_x = grad_rows @ weight
        if grad_x.dtype == down.dtype:
            grad_x.addmm_(grad_narrow, down)
        else:
            grad_x = torch.addmm(grad_x.to(down.dtype), grad_narrow, down).to(grad_x.dtype)
        grad_down = grad_narrow.t() @ rows.to(down.dtype)
        grad_up = (narrow.t() @ wide).mul_(ctx.scale).t()
        return grad_x.view(*grad.shape[:-1], -1), None, None, grad_down, grad_up, None


def _fuse_lora(module: Any) -> None:
    own = module.forward
    (name,) = module.active_adapters
    weight, bias = module.base_layer.weight, module.base_layer.bias
    down, up, scale = module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]

    def forward(x: Tensor) -> Tensor:
        if module.disable_adapters:
            return own(x)  # type: ignore[no-any-return]
        return lora_linear(x, weight, bias, down, up, scale)

    module.forward = forward


def _fuse_norm(module: Any) -> None:
    """Replace the forward of `module` if it computes an RMSNorm."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.ndim != 1 or eps is None:
        return
    probe = torch.linspace(-2, 3, 2 * weight.numel(), dtype=weight.dtype, device=weight.device).view(2, -1)
    gains: tuple[Gain, ...] = ("weight", "one plus weight")
    with torch.no_grad():
        expected = module(probe)
        fitting = [g for g in gains if torch.allclose(rms_norm(probe, weight, eps, g), expected, rtol=1e-5, atol=1e-6)]
    if fitting:
        module.forward = lambda x: rms_norm(x, weight, eps, fitting[0])
