"""Rotary positions of queries and keys as a Triton kernel, a program for each token: what torch does in a dozen passes
over memory, in one.

As `ttrl_pop.kernels.norm_kernels`: imported where there is a CUDA GPU, and run by Triton's interpreter in tests.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor


@triton.jit
@no_type_check
def _turn(
    x_ptr, y_ptr, head_stride, heads, half, cos1, cos2, sin1, sin2, BACK: tl.constexpr, HEADS: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    head = tl.arange(0, HEADS)[:, None]
    i = tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (i < half)
    x1 = tl.load(x_ptr + head * head_stride + i, mask=inside, other=0.0)
    x2 = tl.load(x_ptr + head * head_stride + half + i, mask=inside, other=0.0)
    dtype = x1.dtype
    x1 = x1.to(tl.float32)
    x2 = x2.to(tl.float32)
    # Each product rounded, as the layers of transformers round it.
    if BACK:
        y1 = (x1 * cos1).to(dtype).to(tl.float32) + (x2 * sin2).to(dtype).to(tl.float32)
        y2 = (x2 * cos2).to(dtype).to(tl.float32) - (x1 * sin1).to(dtype).to(tl.float32)
    else:
        y1 = (x1 * cos1).to(dtype).to(tl.float32) - (x2 * sin1).to(dtype).to(tl.float32)
        y2 = (x2 * cos2).to(dtype).to(tl.float32) + (x1 * sin2).to(dtype).to(tl.float32)
    out = y_ptr + head * (2 * half) + i
    tl.store(out, y1.to(dtype), mask=inside)
    tl.store(out + half, y2.to(dtype), mask=inside)


@triton.jit
@no_type_check
def _rotate(
    q_ptr, k_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr, q_token, q_head, k_token, k_head, q_heads, k_heads, half,
    BACK: tl.constexpr, Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, HALF)[None, :]
    inside = i < half
    at = token * (2 * half) + i
    cos1 = tl.load(cos_ptr + at, mask=inside, other=0.0).to(tl.float32)
    cos2 = tl.load(cos_ptr + half + at, mask=inside, other=0.0).to(tl.float32)
    sin1 = tl.load(sin_ptr + at, mask=inside, other=0.0).to(tl.float32)
    sin2 = tl.load(sin_ptr + half + at, mask=inside, other=0.0).to(tl.float32)
    q_out_ptr += token * q_heads * (2 * half)
    k_out_ptr += token * k_heads * (2 * half)
    _turn(q_ptr + token * q_token, q_out_ptr, q_head, q_heads, half, cos1, cos2, sin1, sin2, BACK, Q_HEADS, HALF)
    _turn(k_ptr + token * k_token, k_out_ptr, k_head, k_heads, half, cos1, cos2, sin1, sin2, BACK, K_HEADS, HALF)


def rotate(
    q_1HND: Float[Tensor, "1 H N D"],
    k_1KND: Float[Tensor, "1 K N D"],
    cos_1ND: Float[Tensor, "1 N D"],
    sin_1ND: Float[Tensor, "1 N D"],
    back: bool = False,
) -> tuple[Float[Tensor, "1 H N D"], Float[Tensor, "1 K N D"]]:
    """x · cos + (−x₂, x₁) · sin for queries and keys (arXiv 2104.09864); `back`: the gradient of x, given that of the
    result. What comes out lies in memory token by token."""
    tokens, width = q_1HND.shape[2:]
    turned = []
    for states in (q_1HND, k_1KND):
        turned.append(states.new_empty(tokens, states.shape[1], width))
    q, k = (states if states.stride(-1) == 1 else states.contiguous() for states in (q_1HND, k_1KND))
    if tokens:
        with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
            _rotate[(tokens,)](
                *(q, k, cos_1ND.contiguous(), sin_1ND.contiguous(), *turned),
                *(q.stride(2), q.stride(1), k.stride(2), k.stride(1), q.shape[1], k.shape[1], width // 2),
                BACK=back,
                Q_HEADS=triton.next_power_of_2(q.shape[1]),
                K_HEADS=triton.next_power_of_2(k.shape[1]),
                HALF=triton.next_power_of_2(width // 2),
            )
    q_out, k_out = (states.transpose(0, 1)[None] for states in turned)
    return q_out, k_out
