"""Triton's attention of newest tokens against the plan that it stands for: on a GPU as it compiles them, elsewhere as
Triton's interpreter runs them (`TRITON_INTERPRET=1`)."""

import os

import pytest
import torch

from ttrl_pop.sample.hf import cache as caches
from ttrl_pop.sample.hf.cache import Decode, KeyValueCache

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("takes a CUDA GPU, or TRITON_INTERPRET=1", allow_module_level=True)

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])


@TYPES
@pytest.mark.parametrize("window", [None, 3, 70])
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(9, 3, 64), (2, 2, 10), (4, 1, 16)])
def test_a_token_sees_its_slot_up_to_itself(
    heads: int, key_heads: int, width: int, window: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        pytest.skip("the interpreter multiplies matrices of bf16 as if they were integers")
    positions = torch.tensor([0, 5, 63, 64, 130], device=DEVICE)
    slots, longest = len(positions) + 1, 140
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    queries, keys, values = (drawn(len(positions), count, width) for count in (heads, key_heads, key_heads))
    # What lies behind a token in its slot is whatever another rollout has left there.
    held = [drawn(slots, key_heads, longest, width) for _ in range(2)]
    outs, buffers = [], []
    for by_kernel in (False, True):
        monkeypatch.setattr(caches, "has_kernels", lambda x, by_kernel=by_kernel: by_kernel)
        cache = KeyValueCache(slots, longest)
        cache.layers[0] = (held[0].clone(), held[1].clone())
        plan = Decode(cache, positions, 131, even=False)
        outs.append(plan.attend(0, queries, keys, values, 0.3, window))
        buffers.append(cache.layers[0])
    near = 1e-5 if dtype == torch.float32 else 2**-6
    torch.testing.assert_close(outs[1], outs[0], rtol=near, atol=near)
    for expected, found in zip(*buffers, strict=True):
        assert torch.equal(expected, found)
