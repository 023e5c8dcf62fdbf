"""Norms and offsets as Triton kernels, one program for each row: what torch does in ten passes over memory, in one.

Imported where there is a CUDA GPU. `TRITON_INTERPRET=1` runs them on a CPU, row by row, for tests. Triton compiles what
it reads in this file: no checker of types may stand between, and annotations are its own.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor


@triton.jit
@no_type_check
def _norm_forward(
    x_ptr,
    weight_ptr,
    y_ptr,
    inverse_ptr,
    offsets_ptr,
    row_ptr,
    width,
    eps,
    ONE_PLUS: tl.constexpr,
    KEEP: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    x = tl.load(x_ptr + row * width + at, mask=inside, other=0.0)
    wide = x.to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / width + eps)
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    # Rounded where the layers of transformers round.
    if ONE_PLUS:
        y = wide * inverse * (1.0 + weight)
    else:
        y = (wide * inverse).to(x.dtype).to(tl.float32) * weight
    if OFFSET:
        mind = tl.load(row_ptr + row)
        y += tl.load(offsets_ptr + mind * width + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * width + at, y.to(x.dtype), mask=inside)
    if KEEP:
        tl.store(inverse_ptr + row, inverse)


@triton.jit
@no_type_check
def _norm_backward(
    grad_ptr, x_ptr, weight_ptr, inverse_ptr, out_ptr, width, ONE_PLUS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    x = tl.load(x_ptr + row * width + at, mask=inside, other=0.0)
    inverse = tl.load(inverse_ptr + row)
    normed = x.to(tl.float32) * inverse
    factor = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if ONE_PLUS:
        factor = 1.0 + factor
    scaled = tl.load(grad_ptr + row * width + at, mask=inside, other=0.0).to(tl.float32) * factor
    along = tl.sum(scaled * normed, 0) / width
    tl.store(out_ptr + row * width + at, ((scaled - normed * along) * inverse).to(x.dtype), mask=inside)


@triton.jit
@no_type_check
def _offset(x_ptr, offsets_ptr, row_ptr, y_ptr, width, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    row = tl.load(row_ptr + token)
    x = tl.load(x_ptr + token * width + at, mask=inside, other=0.0)
    offset = tl.load(offsets_ptr + row * width + at, mask=inside, other=0.0)
    tl.store(y_ptr + token * width + at, (x.to(tl.float32) + offset.to(tl.float32)).to(x.dtype), mask=inside)


def norm_forward(
    x_ND: Float[Tensor, "N D"],
    weight: Float[Tensor, "D"],
    eps: float,
    one_plus: bool,
    keep: bool,
    offsets_MD: Float[Tensor, "M D"] | None = None,
    row_N: Int[Tensor, "N"] | None = None,
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N"] | None]:
    """RMSNorm of each row, plus `offsets_MD[row_N]` before it is rounded where they are given; and, to `keep` for the
    backward pass, what each row was multiplied by."""
    y_ND = torch.empty_like(x_ND)
    inverse_N = torch.empty(len(x_ND), dtype=torch.float32, device=x_ND.device) if keep else None
    # Without a place of its own nothing is written there, or read.
    kept = y_ND if inverse_N is None else inverse_N
    offsets, rows = (y_ND, y_ND) if offsets_MD is None or row_N is None else (offsets_MD.contiguous(), row_N)
    given = (x_ND, weight, y_ND, kept, offsets, rows, x_ND.shape[1], eps, one_plus, keep, offsets_MD is not None)
    _each_row(_norm_forward, x_ND, *given)
    return y_ND, inverse_N


def norm_backward(
    grad_ND: Float[Tensor, "N D"],
    x_ND: Float[Tensor, "N D"],
    weight: Float[Tensor, "D"],
    inverse_N: Float[Tensor, "N"],
    one_plus: bool,
) -> Float[Tensor, "N D"]:
    """The gradient of x."""
    out_ND = torch.empty_like(x_ND)
    _each_row(_norm_backward, x_ND, grad_ND, x_ND, weight, inverse_N, out_ND, x_ND.shape[1], one_plus)
    return out_ND


def offset_rows(
    x_ND: Float[Tensor, "N D"], offsets_MD: Float[Tensor, "M D"], row_N: Int[Tensor, "N"]
) -> Float[Tensor, "N D"]:
    """x + offsets[row], summed in float32."""
    y_ND = torch.empty_like(x_ND)
    _each_row(_offset, x_ND, x_ND, offsets_MD, row_N, y_ND, x_ND.shape[1])
    return y_ND


def _each_row(kernel: Any, rows_ND: Tensor, *arguments: Any) -> None:
    """Run `kernel` once for each row."""
    width = rows_ND.shape[1]
    if len(rows_ND):
        block = triton.next_power_of_2(width)
        # Triton runs on the current device, wherever tensors lie.
        with torch.cuda.device_of(rows_ND):  # type: ignore[no-untyped-call]
            kernel[(len(rows_ND),)](*arguments, BLOCK=block, num_warps=4 if block <= 2048 else 8)
