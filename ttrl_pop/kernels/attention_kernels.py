"""Attention of one new token in each slot of a cache as a Triton kernel: a program for each slot and key head puts the
token's key and value into its cell, and reads no more of the slot than the token sees.

As `ttrl_pop.kernels.norm_kernels`: imported where there is a CUDA GPU, and run by Triton's interpreter in tests.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 64
"""Tokens of a slot that a program reads at once."""
LEAST = 16
"""Rows of the smallest product that a GPU's units make."""


@triton.jit
@no_type_check
def _attend_newest(
    query_ptr,
    key_ptr,
    value_ptr,
    keys_ptr,
    values_ptr,
    position_ptr,
    out_ptr,
    longest,
    scale,
    window,
    WIDTH: tl.constexpr,
    SHARED: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    own = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    position = tl.load(position_ptr + tl.program_id(0)).to(tl.int32)
    d = tl.arange(0, BLOCK_D)
    inside = d < WIDTH
    head = tl.arange(0, HEADS)
    at_query = (own * SHARED + head)[:, None] * WIDTH + d[None, :]
    is_query = (head < SHARED)[:, None] & inside[None, :]
    query = tl.load(query_ptr + at_query, mask=is_query, other=0.0)
    key = tl.load(key_ptr + own * WIDTH + d, mask=inside, other=0.0)
    value = tl.load(value_ptr + own * WIDTH + d, mask=inside, other=0.0)
    slot = own * longest * WIDTH
    tl.store(keys_ptr + slot + position * WIDTH + d, key, mask=inside)
    tl.store(values_ptr + slot + position * WIDTH + d, value, mask=inside)
    largest = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    sums = tl.zeros([HEADS, BLOCK_D], tl.float32)
    start = tl.maximum(position - window + 1, 0) // BLOCK_S * BLOCK_S
    # No `for`: what that reads ahead would not fit where heads are wide.
    while start <= position:
        s = start + tl.arange(0, BLOCK_S)
        cell = slot + s[:, None] * WIDTH + d[None, :]
        # The newest is taken from where it came: what was just stored may not be seen yet.
        is_old = (s < position)[:, None] & inside[None, :]
        is_new = (s == position)[:, None]
        keys = tl.where(is_new, key[None, :], tl.load(keys_ptr + cell, mask=is_old, other=0.0))
        values = tl.where(is_new, value[None, :], tl.load(values_ptr + cell, mask=is_old, other=0.0))
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(((s <= position) & (position - s < window))[None, :], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp(scores - larger[:, None])
        shrunk = tl.exp(largest - larger)
        total = total * shrunk + tl.sum(weights, 1)
        sums = sums * shrunk[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        largest = larger
        start += BLOCK_S
    tl.store(out_ptr + at_query, (sums / total[:, None]).to(query.dtype), mask=is_query)


def attend_newest(
    queries_NHD: Float[Tensor, "N H D"],
    keys_NKD: Float[Tensor, "N K D"],
    values_NKD: Float[Tensor, "N K D"],
    cache: tuple[Float[Tensor, "C K S D"], Float[Tensor, "C K S D"]],
    positions_N: Int[Tensor, "N"],
    scale: float,
    window: int | None,
) -> Float[Tensor, "N H D"]:
    """Write each token's key and value to its position in the slot of its number, and let its queries see that slot up
    to there; each key head serves H / K query heads, of which the last `window` tokens are seen."""
    key_heads, longest, width = cache[0].shape[1:]
    shared = queries_NHD.shape[1] // key_heads
    queries_NHD, keys_NKD, values_NKD = queries_NHD.contiguous(), keys_NKD.contiguous(), values_NKD.contiguous()
    out_NHD = torch.empty_like(queries_NHD)
    with torch.cuda.device_of(queries_NHD):  # type: ignore[no-untyped-call]
        _attend_newest[(len(queries_NHD), key_heads)](
            *(queries_NHD, keys_NKD, values_NKD, *cache, positions_N, out_NHD, longest, scale, window or longest),
            WIDTH=width,
            SHARED=shared,
            HEADS=max(LEAST, triton.next_power_of_2(shared)),
            BLOCK_S=BLOCK,
            BLOCK_D=max(LEAST, triton.next_power_of_2(width)),
        )
    return out_NHD
