"""Products with packed weights: the same as plain ones, for any rows, after any change."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import logits_of, tiny_policy
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import linear

from ttrl_pop import layers, products
from ttrl_pop.layers import packed_linear
from ttrl_pop.products import PackedWeight, can_be_packed

needs_mkl = pytest.mark.skipif(not can_be_packed(torch.empty(1, 1)), reason="this torch has no MKL")


@pytest.fixture
def other_mkl(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replaces what torch offers."""

    def replace(**names: Any) -> None:
        monkeypatch.setattr(products, "_mkl", lambda: SimpleNamespace(**names))
        products._is_available.cache_clear()

    yield replace
    monkeypatch.undo()
    products._is_available.cache_clear()


@needs_mkl
@given(
    rows=st.one_of(st.integers(0, 40), st.sampled_from([255, 256, 257, 700])),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    has_bias=st.booleans(),
    seed=st.integers(0, 9),
)
def test_any_number_of_rows_is_right(rows: int, inputs: int, outputs: int, has_bias: bool, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(*s, generator=draw) for s in ((rows, inputs), (outputs, inputs), (outputs,)))
    given_bias = bias if has_bias else None
    packed = PackedWeight(weight)
    torch.testing.assert_close(packed.times(x, given_bias), linear(x, weight, given_bias), rtol=1e-5, atol=1e-5)
    across = x.t().contiguous().t()
    torch.testing.assert_close(packed.times(across, None), linear(x, weight), rtol=1e-5, atol=1e-5)


@needs_mkl
def test_a_weight_that_changed_in_place_is_packed_again() -> None:
    weight, x = torch.randn(8, 6), torch.randn(2, 3, 6)
    packed = PackedWeight(weight)
    before = packed.times(x, None)
    weight.mul_(-2)
    torch.testing.assert_close(packed.times(x, None), -2 * before)
    torch.addmm(weight, torch.ones(8, 1), torch.ones(1, 6), out=weight)
    torch.testing.assert_close(packed.times(x, None), linear(x, weight))


@needs_mkl
def test_a_packed_layer_has_the_gradient_of_a_plain_one() -> None:
    x, weight, bias = torch.randn(2, 3, 6, requires_grad=True), torch.randn(8, 6), torch.randn(8)
    slope = torch.randn(2, 3, 8)
    got, expected = (
        torch.autograd.grad(y, x, slope)
        for y in (packed_linear(x, PackedWeight(weight), bias), linear(x, weight, bias))
    )
    torch.testing.assert_close(got, expected)


@needs_mkl
def test_all_frozen_weights_are_packed_as_far_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    times = PackedWeight.times

    def packed_bytes(share: float, dtype: torch.dtype = torch.float32, **how: Any) -> int:
        used: list[PackedWeight] = []

        def noted(packed: PackedWeight, *arguments: Any) -> torch.Tensor:
            used.append(packed)
            return times(packed, *arguments)

        monkeypatch.setattr(PackedWeight, "times", noted)
        monkeypatch.setattr(layers, "PACKED_SHARE", share)
        logits_of(tiny_policy(dtype=dtype, **how), torch.arange(3, 12)[None], None)
        return sum(4 * packed.weight.numel() for packed in {id(packed): packed for packed in used}.values())

    network = tiny_policy(lora=None).network
    all_bytes = sum(4 * module.weight.numel() for module in network.modules() if isinstance(module, nn.Linear))
    assert packed_bytes(1.0, lora=None) == packed_bytes(1.0) == all_bytes
    monkeypatch.setattr(layers, "limit_bytes", lambda device: all_bytes)
    assert 0 < packed_bytes(0.6, lora=None) <= 0.6 * all_bytes
    assert packed_bytes(0.0) == 0
    assert packed_bytes(1.0, torch.float64) == packed_bytes(1.0, torch.bfloat16) == 0


def test_another_torch_is_used_without_packing(other_mkl: Any) -> None:
    def pack(weight: torch.Tensor, rows: int) -> torch.Tensor:
        return weight

    def wrong(x: torch.Tensor, packed: torch.Tensor, *rest: Any) -> torch.Tensor:
        return linear(x, packed) + 1

    def right(x: torch.Tensor, packed: torch.Tensor, weight: torch.Tensor, bias: Any, rows: int) -> torch.Tensor:
        return linear(x, packed, bias)

    def less(x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
        return linear(x, packed)

    for product, expected in ((right, True), (wrong, False), (less, False)):
        other_mkl(_mkl_reorder_linear_weight=pack, _mkl_linear=product)
        assert can_be_packed(torch.empty(1, 1)) is expected
    other_mkl(_mkl_reorder_linear_weight=pack)
    assert not can_be_packed(torch.empty(1, 1))
