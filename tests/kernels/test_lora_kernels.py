"""Triton's linear layer with an adapter against the formula: on a GPU as it compiles it, elsewhere as Triton's
interpreter runs it (`TRITON_INTERPRET=1`)."""

import os

import pytest
import torch

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("takes a CUDA GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from ttrl_pop.kernels import lora_kernels  # noqa: E402


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("rank", [1, 8, 17])
@pytest.mark.parametrize(("rows", "inner", "outer"), [(1, 64, 32), (37, 100, 70), (33, 16, 200), (70, 32, 1100)])
def test_a_layer_with_its_adapter(rows: int, inner: int, outer: int, rank: int, dtype: torch.dtype) -> None:
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        pytest.skip("the interpreter multiplies matrices of bf16 as if they were integers")
    generator = torch.Generator().manual_seed(rows)

    def drawn(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) / 4).to(DEVICE, dtype)

    x, weight, bias, down, up = (
        drawn(rows, inner),
        drawn(outer, inner),
        drawn(outer),
        drawn(rank, inner),
        drawn(outer, rank),
    )
    for b in (bias, None):
        wide = [matrix.double() for matrix in (x, weight, down, up)]
        expected = wide[0] @ wide[1].t() + 1.5 * wide[0] @ wide[2].t() @ wide[3].t() + (0 if b is None else b.double())
        near = 1e-5 if dtype == torch.float32 else 2**-6
        found = lora_kernels.adapted(x, weight, b, down, up, 1.5)
        torch.testing.assert_close(found.double(), expected, rtol=near, atol=near)
