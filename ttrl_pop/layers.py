"""Layers in forms that pass over memory less often, with gradients of their own.

`fuse(network)` gives RMSNorm, LoRA linear layers and rotary position embeddings the forwards below. Norms and rotations
are known by what they compute, not by their names: they are replaced where their output agrees. Values are those of the
layers replaced (of norms and rotations to the bit in float32 and bf16), but for float64, in which norms of transformers
pass through float32 and these do not.

An adapter is taken into its weights: W' = W + scale · B · A stands beside W, and is made anew where A or B have
changed, so that a forward has no products for adapters, and a backward pass only those of their own gradients. Where
weights are narrower than adapters, as in bf16, the sum would lose what is learned; there, and where all W' would take
too much memory, adapters are computed beside W. W', and weights without adapters, are packed for products where that
is known and there is room (`ttrl_pop.products`).
"""

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, Literal

import torch
from jaxtyping import Float
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ttrl_pop.memory import limit_bytes
from ttrl_pop.products import PackedWeight, can_be_packed, packed_bytes

Gain = Literal["weight", "one plus weight"]
"""What an RMSNorm multiplies by; the second is Gemma's."""
MERGED_SHARE = 0.125
"""Of the memory that a process may have: what merged weights take at most."""
PACKED_SHARE = 0.125
"""Of the memory that a process may have: what packed weights take at most."""
ROTATION = "apply_rotary_pos_emb"
"""What the attention layers of transformers call the function that rotates queries and keys."""


def fuse(network: nn.Module) -> None:
    """Give the layers of `network` that are known here their faster forward. Their frozen weights get no gradient."""
    adapted: list[Any] = []
    frozen: list[nn.Linear] = []
    for module in network.modules():
        if isinstance(module, lora.Linear) and type(module.base_layer) is nn.Linear:
            adapted.append(module)
        elif type(module) is nn.Linear and not module.weight.requires_grad:
            frozen.append(module)
        elif "rmsnorm" in type(module).__name__.lower():
            _fuse_norm(module)
        elif ROTATION in getattr(getattr(type(module).forward, "__code__", None), "co_names", ()):
            _fuse_rotation(module)
    limit = limit_bytes(next(network.parameters()).device)
    weights: list[Tensor] = [module.base_layer.weight for module in adapted]
    merge = sum(weight.numel() * weight.element_size() for weight in weights) <= MERGED_SHARE * limit
    room = PACKED_SHARE * limit

    def packed(weight: Tensor) -> PackedWeight | None:
        nonlocal room
        if not can_be_packed(weight) or packed_bytes(weight) > room:
            return None
        room -= packed_bytes(weight)
        return PackedWeight(weight)

    for module in adapted:
        _fuse_lora(module, merge, packed)
    bases = {module.base_layer for module in adapted}
    for module in frozen:
        if module not in bases and (weight := packed(module.weight)):
            _fuse_linear(module, weight)


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
    is_merged: bool,
    packed: PackedWeight | None = None,
) -> Float[Tensor, "*B O"]:
    """x·Wᵀ + b + scale · x·Aᵀ·Bᵀ (arXiv 2106.09685) with gradients for x, A = `down` and B = `up`.

    Args:
        is_merged: `weight` is W + scale · B · A, not W.
        packed: of `weight`.
    """
    y: Tensor = _LoraLinear.apply(x, weight, bias, down, up, scale, is_merged, packed)  # type: ignore[no-untyped-call]
    return y


def packed_linear(
    x: Float[Tensor, "*B I"], packed: PackedWeight, bias: Float[Tensor, "O"] | None
) -> Float[Tensor, "*B O"]:
    """x·Wᵀ + b with a gradient for x."""
    y: Tensor = _PackedLinear.apply(x, packed.weight, bias, packed)  # type: ignore[no-untyped-call]
    return y


def rotate(
    queries: Float[Tensor, "*B H N D"],
    keys: Float[Tensor, "*B K N D"],
    cos: Float[Tensor, "*B N D"],
    sin: Float[Tensor, "*B N D"],
) -> tuple[Float[Tensor, "*B H N D"], Float[Tensor, "*B K N D"]]:
    """Rotary position embedding (arXiv 2104.09864) of pairs (i, i + D / 2): x·cos + (-x₂, x₁)·sin for x = (x₁, x₂)."""
    rotated: tuple[Tensor, Tensor] = _Rotation.apply(queries, keys, cos.unsqueeze(-3), sin.unsqueeze(-3))  # type: ignore[no-untyped-call]
    return rotated


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


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _turned(queries, cos, sin), _turned(keys, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_queries: Tensor, grad_keys: Tensor) -> tuple[Tensor, Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        # A pair has one angle, so the halves of sin are alike and the transpose is the opposite turn.
        return _turned(grad_queries, cos, -sin), _turned(grad_keys, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    y = x * cos
    # Rounded product by product, as transformers does; `addcmul_` would round once.
    y[..., :half].sub_(x[..., half:] * sin[..., :half])
    y[..., half:].add_(x[..., :half] * sin[..., half:])
    return y


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
        is_merged: bool,
        packed: PackedWeight | None,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = packed.times(rows, bias) if packed else nn.functional.linear(rows, weight, bias)
        if not is_merged:
            # The adapter may be wider than the weights: the sum is taken in its type.
            y = torch.addmm(y.to(up.dtype), rows.to(down.dtype) @ down.t(), up.t(), alpha=scale).to(y.dtype)
        ctx.save_for_backward(rows, weight, down, up)
        ctx.scale, ctx.is_merged = scale, is_merged
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None, None, None]:
        rows, weight, down, up = ctx.saved_tensors
        grad_rows = grad.reshape(-1, grad.shape[-1])
        wide_grad, wide_rows = grad_rows.to(up.dtype), rows.to(down.dtype)
        grad_narrow = (wide_grad @ up).mul_(ctx.scale)
        grad_down = grad_narrow.t() @ wide_rows
        # With the thin side first, these products are at their fastest.
        grad_up = (down @ wide_rows.t() @ wide_grad).mul_(ctx.scale).t()
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_rows @ weight
            if not ctx.is_merged:
                grad_x = torch.addmm(grad_x.to(down.dtype), grad_narrow, down).to(grad_x.dtype)
            grad_x = grad_x.view(*grad.shape[:-1], -1)
        return grad_x, None, None, grad_down, grad_up, None, None, None


class _PackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, packed: PackedWeight) -> Tensor:
        ctx.save_for_backward(weight)
        return packed.times(x, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return grad @ weight, None, None, None


def _fuse_lora(module: Any, merge: bool, pack: Callable[[Tensor], PackedWeight | None]) -> None:
    """Replace the forward of `module`; `merge`: there is room for its merged weights."""
    own = module.forward
    (name,) = module.active_adapters
    weight, bias = module.base_layer.weight, module.base_layer.bias
    down, up, scale = module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]
    merged = torch.empty_like(weight, requires_grad=False) if merge and weight.dtype == up.dtype else None
    packed = None if merged is None else pack(merged)
    merged_at = (-1, -1)

    def forward(x: Tensor) -> Tensor:
        nonlocal merged_at
        if module.disable_adapters:
            return own(x)  # type: ignore[no-any-return]
        if merged is None:
            return lora_linear(x, weight, bias, down, up, scale, is_merged=False)
        # In-place updates raise a tensor's version.
        versions = (down._version, up._version)
        if versions != merged_at:
            with torch.no_grad():
                torch.addmm(weight, up, down, alpha=scale, out=merged)
            merged_at = versions
        return lora_linear(x, merged, bias, down, up, scale, is_merged=True, packed=packed)

    module.forward = forward


def _fuse_linear(module: Any, packed: PackedWeight) -> None:
    """Replace the forward of `module`, whose weight is `packed`."""
    module.forward = lambda x: packed_linear(x, packed, module.bias)


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


def _fuse_rotation(module: Any) -> None:
    """Let the attention layer `module` rotate by `rotate` if that is what it does."""
    forward = type(module).forward
    own: Callable[..., tuple[Tensor, Tensor]] = forward.__globals__[ROTATION]
    heads, angles = torch.linspace(-2, 3, 48).view(1, 2, 3, 8), torch.linspace(0, 5, 12).view(1, 3, 4)
    probe = (heads, heads[:, :1], *(f(angles).repeat(1, 1, 2) for f in (torch.cos, torch.sin)))
    turned = rotate(*probe)
    try:
        pairs = [*zip(turned, own(*probe), strict=True)]
        agrees = all(torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6) for ours, theirs in pairs)
    except (TypeError, ValueError, IndexError, RuntimeError):
        # It takes its angles, or gives its results, in another form.
        return
    if not agrees:
        return

    def rotated(queries: Tensor, keys: Tensor, cos: Tensor, sin: Tensor, *more: Any, **named: Any) -> Any:
        # Some families turn a part of each head, and say nothing of it here but by the shape of the angles.
        if more or named or cos.shape[-1] != queries.shape[-1]:
            return own(queries, keys, cos, sin, *more, **named)
        return rotate(queries, keys, cos, sin)

    # The layer looks the function up by its name: its forward gets names of its own, in which that one means ours.
    names = {**forward.__globals__, ROTATION: rotated}
    bound = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    bound.__kwdefaults__ = forward.__kwdefaults__
    module.forward = MethodType(bound, module)
