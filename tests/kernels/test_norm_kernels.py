"""Triton's kernels against the formulas in torch: on a GPU as it compiles them, elsewhere as Triton's interpreter runs
them (`TRITON_INTERPRET=1`)."""

import os

import pytest
import torch

from ttrl_pop.kernels import norms

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("takes a CUDA GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from ttrl_pop.kernels import norm_kernels  # noqa: E402

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2**-6, "atol": 2**-6}


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


@TYPES
@pytest.mark.parametrize("gain", ["weight", "one plus weight"])
@pytest.mark.parametrize("width", [16, 48, 576])
def test_a_norm_and_its_slope(width: int, gain: norms.Gain, dtype: torch.dtype) -> None:
    x, weight, grad = drawn(7, width, dtype=dtype), drawn(width, dtype=dtype), drawn(7, width + 1, dtype=dtype)[:, 1:]
    plain = x.double().requires_grad_()
    factor = weight.double() if gain == "weight" else 1 + weight.double()
    expected = plain / (plain.square().mean(-1, keepdim=True) + 1e-3).sqrt() * factor
    (slope,) = torch.autograd.grad(expected, plain, grad.double())
    y, inverse = norm_kernels.norm_forward(x, weight, 1e-3, gain != "weight", True)
    assert inverse is not None
    torch.testing.assert_close(y.double(), expected.detach(), **tolerance(dtype))
    found = norm_kernels.norm_backward(grad.contiguous(), x, weight, inverse, gain != "weight")
    torch.testing.assert_close(found.double(), slope, **tolerance(dtype))
    again, nothing = norm_kernels.norm_forward(x, weight, 1e-3, gain != "weight", False)
    assert nothing is None
    assert torch.equal(again, y)


@TYPES
@pytest.mark.parametrize("gain", ["weight", "one plus weight"])
def test_a_norm_with_offsets_is_rounded_once(gain: norms.Gain, dtype: torch.dtype) -> None:
    x, weight, offsets = drawn(9, 48, dtype=dtype), drawn(48, dtype=dtype), drawn(4, 48)
    row = torch.tensor([0, 3, 1, 1, 2, 0, 3, 3, 1], device=DEVICE)
    plain, inverse = norm_kernels.norm_forward(x, weight, 1e-3, gain != "weight", True)
    nothing, same = norm_kernels.norm_forward(x, weight, 1e-3, gain != "weight", True, 0 * offsets, row)
    assert torch.equal(nothing, plain)
    assert inverse is not None
    assert same is not None
    assert torch.equal(same, inverse)
    y, _ = norm_kernels.norm_forward(x, weight, 1e-3, gain != "weight", False, offsets, row)
    normed = x.float() * inverse[:, None]
    factor = weight.float() if gain == "weight" else 1 + weight.float()
    product = (normed.to(dtype).float() if gain == "weight" else normed) * factor
    # The interpreter cuts off where a GPU rounds, here twice.
    near = 1e-5 if dtype == torch.float32 else 2**-8 if DEVICE == "cuda" else 2**-6
    gap = (y.float() - (product + offsets[row])).abs()
    assert bool((gap <= near * (1 + product.abs() + offsets[row].abs())).all())
    if dtype == torch.bfloat16:
        # Of an offset far below the grid, all arrives in the mean.
        small = torch.full_like(offsets, 1e-3)
        x, row = drawn(2048, 48, dtype=dtype), torch.zeros(2048, dtype=torch.long, device=DEVICE)
        with_it, without = (
            norm_kernels.norm_forward(x, weight, 1e-3, gain != "weight", False, each, row)[0].double()
            for each in (small, 0 * small)
        )
        assert abs(float((with_it - without).mean()) / 1e-3 - 1) < 0.1


@TYPES
def test_offsets_by_row(dtype: torch.dtype) -> None:
    x, offsets, row = drawn(9, 48, dtype=dtype), drawn(4, 48), torch.tensor([0, 3, 1, 1, 2, 0, 3, 3, 1], device=DEVICE)
    expected = (x.float() + offsets[row]).to(dtype)
    # The interpreter cuts off where a GPU rounds.
    near = 0.0 if DEVICE == "cuda" or dtype == torch.float32 else 2**-7
    torch.testing.assert_close(norm_kernels.offset_rows(x, offsets, row), expected, rtol=near, atol=near)


@TYPES
@pytest.mark.parametrize("few", [0, 256])
def test_slopes_of_offsets_are_sums_over_their_rows(
    few: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norms, "has_kernels", lambda x: True)
    monkeypatch.setattr(norms, "FEW_ROWS", few)
    row = torch.tensor([0, 3, 1, 1, 2, 0, 3, 3, 1], device=DEVICE)
    x, offsets = drawn(9, 48, dtype=dtype).requires_grad_(), drawn(5, 48).requires_grad_()
    grad = drawn(9, 48, dtype=dtype)
    of_x, of_offsets = torch.autograd.grad(norms.offset_rows(x, offsets, row), [x, offsets], grad)
    assert torch.equal(of_x, grad)
    expected = torch.stack([grad[row == r].float().sum(0) for r in range(5)])
    torch.testing.assert_close(of_offsets, expected, rtol=1e-5, atol=1e-5)


def test_no_rows_are_no_work() -> None:
    y, _ = norm_kernels.norm_forward(drawn(0, 16), drawn(16), 1e-3, False, False)
    assert y.shape == (0, 16)
