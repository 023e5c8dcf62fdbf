"""Products with packed weights: the same as plain ones, for any rows, after any change."""

import mmap
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import logits_of, tiny_policy
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import linear

from ttrl_pop import fuse, products
from ttrl_pop.layers import Projection
from ttrl_pop.layers import linear as own_linear
from ttrl_pop.products import Mkl, PackedWeight, can_be_packed

needs_mkl = pytest.mark.skipif(not can_be_packed(torch.empty(1, 1)), reason="this torch has no MKL")


@pytest.fixture
def other_mkl(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replaces what torch's library offers."""

    def replace(mkl: Mkl | None) -> None:
        monkeypatch.setattr(products, "_mkl", lambda: mkl)
        products._is_right.cache_clear()

    yield replace
    monkeypatch.undo()
    products._is_right.cache_clear()


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
        for y in (own_linear(x, Projection(weight, bias, packed=PackedWeight(weight))), linear(x, weight, bias))
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
        monkeypatch.setattr(fuse, "PACKED_SHARE", share)
        logits_of(tiny_policy(dtype=dtype, **how), torch.arange(3, 12)[None], None)
        return sum(4 * packed.weight.numel() for packed in {id(packed): packed for packed in used}.values())

    network = tiny_policy(lora=None).network
    all_bytes = sum(4 * module.weight.numel() for module in network.modules() if isinstance(module, nn.Linear))
    assert packed_bytes(1.0, lora=None) == packed_bytes(1.0) == all_bytes
    monkeypatch.setattr(fuse, "limit_bytes", lambda device: all_bytes)
    assert 0 < packed_bytes(0.6, lora=None) <= 0.6 * all_bytes
    assert packed_bytes(0.0) == 0
    assert packed_bytes(1.0, torch.float64) == packed_bytes(1.0, torch.bfloat16) == 0


@needs_mkl
def test_where_the_product_is_missing_or_wrong_nothing_is_packed(other_mkl: Any) -> None:
    weight, mkl = torch.ones(1, 1), products._mkl()
    other_mkl(None)
    assert not can_be_packed(weight)
    with pytest.raises(ValueError, match="float32 on a CPU with MKL"):
        PackedWeight(weight)
    for twice in (False, True):

        def compute(*arguments: Any, twice: bool = twice) -> None:
            mkl.compute(*arguments)
            if twice:
                mkl.compute(*arguments[:-3], 1.0, *arguments[-2:])

        other_mkl(Mkl(mkl.size, mkl.pack, compute))
        assert can_be_packed(weight) is not twice


@needs_mkl
def test_what_cannot_be_read_as_it_lies_is_refused() -> None:
    packed = PackedWeight(torch.ones(2, 3))
    with pytest.raises(TypeError, match="takes float32 on the CPU"):
        packed.times(torch.ones(1, 3, dtype=torch.float64), None)
    with pytest.raises(ValueError, match="takes rows of 3, got 2"):
        packed.times(torch.ones(1, 2), None)
    for weight in (torch.ones(3, 2).t(), torch.ones(2, 3).double(), torch.ones(3)):
        assert not can_be_packed(weight)


@needs_mkl
def test_another_default_type_changes_nothing() -> None:
    packed, x = PackedWeight(torch.ones(2, 3)), torch.ones(1, 3)
    products._is_right.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        assert can_be_packed(packed.weight)
        assert torch.equal(packed.times(x, None), torch.full((1, 2), 3.0, dtype=torch.float32))
    finally:
        torch.set_default_dtype(torch.float32)


@needs_mkl
def test_packing_again_takes_no_more_memory() -> None:
    weights = [torch.ones(512, 256) for _ in range(20)]
    packed = [PackedWeight(weight) for weight in weights]
    x = torch.ones(4, 256)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    before = resident()
    for weight in packed:
        weight.times(x, None)
    first = resident() - before
    for _ in range(5):
        for weight in weights:
            weight.mul_(2)
        for again in packed:
            again.times(x, None)
    size = sum(weight.numel() * 4 for weight in weights)
    assert first < 1.5 * size
    assert resident() - before < 1.5 * size


@needs_mkl
def test_a_limit_on_address_space_counts_all_that_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.ones(192, 576)
    assert products.packed_bytes(weight) == weight.numel() * 4
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 40, 1 << 40))
    assert products.packed_bytes(weight) == len(PackedWeight(weight)._memory)
