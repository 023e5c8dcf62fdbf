"""RMSNorm, and the sum of states with a row of offsets for each: with gradients of their own, in one pass over memory
where there is a CUDA GPU (`ttrl_pop.kernels.norm_kernels`).

Without gradients float32 on a CPU has loops of its own (`ttrl_pop.kernels.loops`). But for these, values of norms are
those of transformers' (to the bit on a CPU in float32 and bf16), and but for float64, in which those pass through
float32 and these do not.
"""

import importlib.util
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, TypeAlias

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


def offset_rms_norm(
    x: Float[Tensor, "*B D"],
    weight: Float[Tensor, "D"],
    eps: float,
    gain: Gain,
    offsets_MD: Float[Tensor, "M D"],
    row_N: Int[Tensor, "N"],
) -> Float[Tensor, "*B D"]:
    """The norm of x plus offsets[row], rounded to the type of x once, with the offset in it.

    A norm in bf16 lies on a grid of 1/128 or so: of a smaller offset that is added behind it most would be lost."""
    rows = x.reshape(-1, x.shape[-1])
    # The kernel has no gradient for the weight.
    if has_kernels(x) and not (weight.requires_grad and torch.is_grad_enabled()):
        y: Tensor = _OffsetRmsNorm.apply(rows, weight, eps, gain, offsets_MD, row_N)  # type: ignore[no-untyped-call]
        return y.view(x.shape)
    return _added(unrounded_rms_norm(rows, weight, eps, gain), offsets_MD, row_N, x.dtype).view(x.shape)


def unrounded_rms_norm(
    x: Float[Tensor, "*B D"], weight: Float[Tensor, "D"], eps: float, gain: Gain
) -> Float[Tensor, "*B D"]:
    """The norm of x in float32 or wider: rounded to the type of x, it is that of transformers to the bit."""
    normed = _normed(x, eps)[0]
    factor = weight.to(normed.dtype)
    # Rounded where the layers of transformers round.
    return normed.to(x.dtype) * factor if gain == "weight" else normed * (1.0 + factor)


def offset_rows(
    x_ND: Float[Tensor, "N D"], offsets_MD: Float[Tensor, "M D"], row_N: Int[Tensor, "N"]
) -> Float[Tensor, "N D"]:
    """x + offsets[row], summed in the wider type of the two and given in that of x."""
    if has_kernels(x_ND):
        y: Tensor = _OffsetRows.apply(x_ND, offsets_MD, row_N)  # type: ignore[no-untyped-call]
        return y
    if loops.are_for(x_ND) and offsets_MD.dtype == x_ND.dtype:
        return loops.offset_rows(x_ND, offsets_MD, row_N)
    return _added(x_ND, offsets_MD, row_N, x_ND.dtype)


def gain_of(module: Any) -> tuple[Tensor, float, Gain] | None:
    """Weight, eps and gain of a module that computes an RMSNorm, as a look at what it computes tells; None if it does
    not."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.ndim != 1 or eps is None:
        return None
    probe = torch.linspace(-2, 3, 2 * weight.numel(), dtype=weight.dtype, device=weight.device).view(2, -1)
    # A sum in another order may round to the number beside.
    near = max(1e-5, torch.finfo(weight.dtype).eps)
    with torch.no_grad():
        # Past hooks, one of which may be asking.
        expected = module.forward(probe)
        for gain in ADDED:
            if torch.allclose(rms_norm(probe, weight, eps, gain), expected, rtol=near, atol=1e-6):
                return weight, eps, gain
    return None


Rows: TypeAlias = tuple[Float[Tensor, "M D"], Int[Tensor, "N"]]
"""Offsets, and which of them each token has."""


class AddOffset:
    """A forward hook of a norm: it adds a row of offsets to the states of each token, or nothing.

    Whoever computes the norm without its module, and so without its hooks, asks it for the `rows`. Where states are
    narrower than offsets, the norm is computed once more, so that it is rounded with the offset in it; behind another
    hook, or of a norm of an unknown kind, what was rounded before is taken.
    """

    def __init__(self, rows: Callable[[int], Rows | None]) -> None:
        """`rows`: those of so many tokens; None for nothing."""
        self.rows = rows
        self._known: tuple[float, Gain] | None = None
        self._has_looked = False

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        found = self.rows(output.numel() // output.shape[-1])
        if found is None:
            return None
        if self.is_first(module._forward_hooks):
            if isinstance(vars(module).get("forward"), FusedNorm) and in_one_pass(output, found[0]):
                # It has asked for them.
                return None
            if _is_narrow(output, found[0]) and inputs and (y := self._in_one(module, inputs[0], *found)) is not None:
                return y
        return offset_rows(output.flatten(0, -2), *found).view(output.shape)

    def is_first(self, hooks: Mapping[int, Any]) -> bool:
        """Whether no other hook comes before it."""
        return next(iter(hooks.values()), None) is self

    def _in_one(self, module: nn.Module, x: Tensor, offsets_MD: Tensor, row_N: Tensor) -> Tensor | None:
        """Norm and offset rounded once; None where nobody knows what the norm computes."""
        if type(module) is nn.LayerNorm:
            wide = offsets_MD.dtype
            weight, bias = (None if each is None else each.to(wide) for each in (module.weight, module.bias))
            rows = nn.functional.layer_norm(x.to(wide), module.normalized_shape, weight, bias, module.eps)
            return _added(rows.flatten(0, -2), offsets_MD, row_N, x.dtype).view(x.shape)
        if not self._has_looked:
            found = gain_of(module) if "rmsnorm" in type(module).__name__.lower() else None
            self._known, self._has_looked = (None if found is None else found[1:]), True
        # Asked for anew: whoever trains the model may have put others in the place of its weights.
        now: Any = module.weight
        if self._known is None or now.shape != x.shape[-1:]:
            return None
        return offset_rms_norm(x, now, *self._known, offsets_MD, row_N)


class FusedNorm:
    """A forward of an RMSNorm: what an `AddOffset` hook would add first, it adds before it rounds."""

    def __init__(self, module: nn.Module, weight: Float[Tensor, "D"], eps: float, gain: Gain) -> None:
        self._hooks = module._forward_hooks
        self._numbers = (weight, eps, gain)

    def __call__(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        hook = next(iter(self._hooks.values()), None)
        if isinstance(hook, AddOffset):
            found = hook.rows(x.numel() // x.shape[-1])
            if found is not None and in_one_pass(x, found[0]):
                return offset_rms_norm(x, *self._numbers, *found)
        return rms_norm(x, *self._numbers)


def in_one_pass(x: Tensor, offsets_MD: Tensor) -> bool:
    """Whether a `FusedNorm` adds offsets by itself: where it must not round before, or it is faster."""
    return has_kernels(x) or _is_narrow(x, offsets_MD)


def _added(x_ND: Tensor, offsets_MD: Tensor, row_N: Tensor, dtype: torch.dtype) -> Tensor:
    """x + offsets[row], summed in the wider type of the two."""
    # Added to the copies themselves: in place on a view of them the backward pass would copy its gradient.
    wide = torch.promote_types(offsets_MD.dtype, x_ND.dtype)
    return offsets_MD.index_select(0, row_N).to(wide).add_(x_ND).to(dtype)


def _is_narrow(x: Tensor, offsets_MD: Tensor) -> bool:
    return torch.promote_types(x.dtype, offsets_MD.dtype) != x.dtype


def has_kernels(x: Tensor) -> bool:
    """Whether there are kernels for tensors like `x`."""
    return x.device.type == "cuda" and x.dtype in (torch.float32, torch.bfloat16) and _has_triton()


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _by_kernel(
    x: Tensor, weight: Tensor, eps: float, gain: Gain, learns: bool, *offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The norm of the rows of x, those rows, and where it `learns` what they were divided by, inverted.

    Args:
        offsets: where some are added, they, and which of them each row has.
    """
    from ttrl_pop.kernels import norm_kernels

    rows = x.reshape(-1, x.shape[-1]).contiguous()
    y, inverse = norm_kernels.norm_forward(rows, weight, eps, gain != "weight", learns, *offsets)
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
            return _slopes_by_kernel(grad, kept, weight, inverse, ctx.gain), None, None, None
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
        wanted = ctx.needs_input_grad[1]
        return grad_ND, _slopes_of_offsets(grad_ND, row_N, ctx.shape, ctx.dtype) if wanted else None, None


class _OffsetRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight: Tensor, eps: float, gain: Gain, offsets_MD: Tensor, row_N: Tensor
    ) -> Tensor:
        y_ND, rows_ND, inverse_N = _by_kernel(x_ND, weight, eps, gain, any(ctx.needs_input_grad), offsets_MD, row_N)
        ctx.gain, ctx.shape, ctx.dtype = gain, offsets_MD.shape, offsets_MD.dtype
        ctx.save_for_backward(rows_ND, weight, inverse_N, row_N)
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        rows_ND, weight, inverse_N, row_N = ctx.saved_tensors
        of_x, *_, of_offsets, _ = ctx.needs_input_grad
        return (
            _slopes_by_kernel(grad_ND, rows_ND, weight, inverse_N, ctx.gain) if of_x else None,
            *(None, None, None),
            _slopes_of_offsets(grad_ND, row_N, ctx.shape, ctx.dtype) if of_offsets else None,
            None,
        )


def _slopes_by_kernel(grad: Tensor, rows: Tensor, weight: Tensor, inverse: Tensor, gain: Gain) -> Tensor:
    """The gradient of what a norm reads."""
    from ttrl_pop.kernels import norm_kernels

    slopes = norm_kernels.norm_backward(grad.reshape(rows.shape).contiguous(), rows, weight, inverse, gain != "weight")
    return slopes.view(grad.shape)


def _slopes_of_offsets(grad_ND: Tensor, row_N: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The gradient of offsets: of each row, the sum over the tokens that have it."""
    rows, wide_ND = shape[0], grad_ND.to(dtype)
    if rows > FEW_ROWS:
        return wide_ND.new_zeros(shape).index_add_(0, row_N, wide_ND)
    # Thousands of tokens that add to one row in memory would wait for each other.
    owned_MN = torch.arange(rows, device=row_N.device)[:, None] == row_N
    return owned_MN.to(dtype) @ wide_ND
