"""A linear layer with its adapter as one Triton kernel, for the few rows of a decode step: three products that each are
over before the next one has begun.

As `ttrl_pop.kernels.norm_kernels`: imported where there is a CUDA GPU, and run by Triton's interpreter in tests.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

LEAST = 16
"""Rows of the smallest product that a GPU's units make."""
ROWS, INNER, WORK = 256, 2048, 2**30
"""Rows, width of x, and products of numbers up to which one kernel is faster than three (dev/LOG.md)."""
WIDE = 1024
"""Width of y above which parts are larger."""


@triton.jit
@no_type_check
def _adapted(
    x_ptr, weight_ptr, bias_ptr, down_ptr, up_ptr, y_ptr, rows, outer, scale, INNER: tl.constexpr,
    RANK: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    r = tl.arange(0, BLOCK_R)
    i = tl.arange(0, BLOCK_I)
    x_at = x_ptr + n[:, None] * INNER + i[None, :]
    weight_at = weight_ptr + o[None, :] * INNER + i[:, None]
    down_at = down_ptr + r[None, :] * INNER + i[:, None]
    y = tl.zeros([BLOCK_N, BLOCK_O], tl.float32)
    low = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
    for start in range(0, INNER, BLOCK_I):
        inside = i < INNER - start
        x = tl.load(x_at + start, mask=(n < rows)[:, None] & inside[None, :], other=0.0)
        weight = tl.load(weight_at + start, mask=(o < outer)[None, :] & inside[:, None], other=0.0)
        down = tl.load(down_at + start, mask=(r < RANK)[None, :] & inside[:, None], other=0.0)
        y = tl.dot(x, weight, y, input_precision="ieee")
        low = tl.dot(x, down, low, input_precision="ieee")
    up_at = up_ptr + o[None, :] * RANK + r[:, None]
    up = tl.load(up_at, mask=(o < outer)[None, :] & (r < RANK)[:, None], other=0.0)
    y += tl.dot(low.to(up.dtype), up, input_precision="ieee") * scale
    if HAS_BIAS:
        y += tl.load(bias_ptr + o, mask=o < outer, other=0.0).to(tl.float32)[None, :]
    at = y_ptr + n[:, None] * outer + o[None, :]
    tl.store(at, y.to(up.dtype), mask=(n < rows)[:, None] & (o < outer)[None, :])


def is_faster(rows: int, inner: int, outer: int) -> bool:
    """Whether `adapted` is faster than a product with W and two with the adapter, x being [rows, inner] and y
    [rows, outer]."""
    return rows <= ROWS and inner <= INNER and rows * inner * outer <= WORK


def adapted(
    x_NI: Float[Tensor, "N I"],
    weight_OI: Float[Tensor, "O I"],
    bias_O: Float[Tensor, "O"] | None,
    down_RI: Float[Tensor, "R I"],
    up_OR: Float[Tensor, "O R"],
    scale: float,
) -> Float[Tensor, "N O"]:
    """x·Wᵀ + b + scale · x·Aᵀ·Bᵀ, of matrices that lie in memory row by row, in one type."""
    rows, inner = x_NI.shape
    outer, rank = up_OR.shape
    y_NO = x_NI.new_empty(rows, outer)
    # Small parts, so that every unit has one.
    block_n, block_o, block_i = 64, 64 if rows > 64 and outer > WIDE else 32, 64
    with torch.cuda.device_of(x_NI):  # type: ignore[no-untyped-call]
        _adapted[(triton.cdiv(rows, block_n), triton.cdiv(outer, block_o))](
            *(x_NI, weight_OI, weight_OI if bias_O is None else bias_O, down_RI, up_OR, y_NO, rows, outer, scale),
            INNER=inner,
            RANK=rank,
            HAS_BIAS=bias_O is not None,
            BLOCK_N=block_n,
            BLOCK_O=block_o,
            BLOCK_I=block_i,
            BLOCK_R=max(LEAST, triton.next_power_of_2(rank)),
            num_warps=4,
            num_stages=4,
        )
    return y_NO
