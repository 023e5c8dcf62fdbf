"""Products with weights that are laid out: the same as plain ones, for any rows, after any change."""

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

from ttrl_pop.kernels import install as fuse
from ttrl_pop.kernels import matmul
from ttrl_pop.kernels.fused import Projection
from ttrl_pop.kernels.fused import linear as own_linear
from ttrl_pop.kernels.matmul import LaidOutWeight, Mkl, MklWeight, OneDnnWeight

KINDS: list[type[LaidOutWeight]] = [kind for kind in (MklWeight, OneDnnWeight) if matmul._is_right(kind)]
"""What this machine's torch has, whichever of them its processor calls for."""
needs_mkl = pytest.mark.skipif(MklWeight not in KINDS, reason="this torch has no MKL")
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes one layout of weights that of this processor, or none."""
    return lambda kind: monkeypatch.setattr(matmul, "_kind", lambda: kind)


def test_there_is_something_to_test_on_x86() -> None:
    if matmul.platform.machine() in ("x86_64", "AMD64"):
        assert KINDS


@kinds
@given(
    rows=st.one_of(st.integers(0, 40), st.sampled_from([255, 256, 257, 700])),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    has_bias=st.booleans(),
    seed=st.integers(0, 9),
)
def test_any_number_of_rows_is_right(
    kind: type[LaidOutWeight], rows: int, inputs: int, outputs: int, has_bias: bool, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(*s, generator=draw) for s in ((rows, inputs), (outputs, inputs), (outputs,)))
    given_bias = bias if has_bias else None
    laid_out = kind(weight)
    torch.testing.assert_close(laid_out.times(x, given_bias), linear(x, weight, given_bias), rtol=1e-5, atol=1e-5)
    across = x.t().contiguous().t()
    torch.testing.assert_close(laid_out.times(across, None), linear(x, weight), rtol=1e-5, atol=1e-5)


@kinds
def test_a_weight_that_changed_in_place_is_laid_out_again(kind: type[LaidOutWeight]) -> None:
    weight, x = torch.randn(8, 6), torch.randn(2, 3, 6)
    laid_out = kind(weight)
    before = laid_out.times(x, None)
    weight.mul_(-2)
    torch.testing.assert_close(laid_out.times(x, None), -2 * before)
    torch.addmm(weight, torch.ones(8, 1), torch.ones(1, 6), out=weight)
    torch.testing.assert_close(laid_out.times(x, None), linear(x, weight))


@kinds
def test_a_laid_out_layer_has_the_gradient_of_a_plain_one(kind: type[LaidOutWeight], taken: Any) -> None:
    taken(kind)
    x, weight, bias = torch.randn(2, 3, 6, requires_grad=True), torch.randn(8, 6), torch.randn(8)
    slope = torch.randn(2, 3, 8)
    got, expected = (
        torch.autograd.grad(y, x, slope)
        for y in (own_linear(x, Projection(weight, bias, laid_out=kind(weight))), linear(x, weight, bias))
    )
    torch.testing.assert_close(got, expected)


@kinds
def test_all_frozen_weights_are_laid_out_as_far_as_there_is_room(
    kind: type[LaidOutWeight], taken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken(kind)
    times = LaidOutWeight.times

    def laid_out_bytes(share: float, dtype: torch.dtype = torch.float32, **how: Any) -> int:
        used: list[LaidOutWeight] = []

        def noted(laid_out: LaidOutWeight, *arguments: Any) -> torch.Tensor:
            used.append(laid_out)
            return times(laid_out, *arguments)

        monkeypatch.setattr(LaidOutWeight, "times", noted)
        monkeypatch.setattr(fuse, "LAYOUT_SHARE", share)
        logits_of(tiny_policy(dtype=dtype, **how), torch.arange(3, 12)[None], None)
        return sum(4 * numel for numel in {id(each): each.weight.numel() for each in used}.values())

    network = tiny_policy(lora=None).network
    all_bytes = sum(4 * module.weight.numel() for module in network.modules() if isinstance(module, nn.Linear))
    assert laid_out_bytes(1.0, lora=None) == laid_out_bytes(1.0) == all_bytes
    monkeypatch.setattr(fuse, "limit_bytes", lambda device: all_bytes)
    assert 0 < laid_out_bytes(0.6, lora=None) <= 0.6 * all_bytes
    assert laid_out_bytes(0.0) == 0
    assert laid_out_bytes(1.0, torch.float64) == laid_out_bytes(1.0, torch.bfloat16) == 0


@pytest.mark.parametrize(
    ("vendor", "kind"), [("GenuineIntel", MklWeight), ("AuthenticAMD", OneDnnWeight), ("CentaurHauls", None)]
)
def test_the_processor_decides(
    vendor: str, kind: type[LaidOutWeight] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decided() -> type[LaidOutWeight] | None:
        matmul._kind.cache_clear()
        return matmul._kind()

    told = tmp_path / "cpuinfo"
    told.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(matmul, "CPUINFO", told)
    monkeypatch.setattr(matmul.platform, "machine", lambda: "x86_64")
    try:
        assert decided() is (kind if kind in KINDS else None)
        monkeypatch.setattr(matmul.platform, "machine", lambda: "aarch64")
        assert decided() is None
        monkeypatch.setattr(matmul.platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(matmul, "_is_right", lambda kind: False)
        assert decided() is None
    finally:
        monkeypatch.undo()
        decided()


@needs_mkl
def test_a_product_that_is_missing_or_wrong_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    mkl = matmul._mkl()
    assert mkl is not None
    monkeypatch.setattr(matmul, "_mkl", lambda: None)
    assert not matmul._is_right(MklWeight)
    with pytest.raises(ValueError, match="no MKL"):
        MklWeight(torch.ones(1, 1))

    def twice(*arguments: Any) -> None:
        mkl.compute(*arguments)
        mkl.compute(*arguments[:-3], 1.0, *arguments[-2:])

    monkeypatch.setattr(matmul, "_mkl", lambda: Mkl(mkl.size, mkl.pack, twice))
    assert not matmul._is_right(MklWeight)
    monkeypatch.setattr(matmul, "_onednn_product", lambda x, weight, laid_out, bias: linear(x, weight, bias) * 1.01)
    assert not matmul._is_right(OneDnnWeight)


@kinds
def test_where_the_processor_calls_for_none_nothing_is_laid_out(kind: type[LaidOutWeight], taken: Any) -> None:
    weight = torch.ones(2, 3)
    taken(kind)
    assert isinstance(matmul.lay_out(weight), kind)
    for other in (weight.t(), weight.double()):
        assert matmul.lay_out(other) is None
    taken(None)
    assert matmul.lay_out(weight) is None


@needs_mkl
def test_where_no_address_space_is_left_nothing_is_laid_out(taken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    taken(MklWeight)
    monkeypatch.setattr(matmul.mmap, "mmap", refuse)
    assert matmul.lay_out(torch.ones(2, 3)) is None


@kinds
@given(rows=st.integers(0, 40), inputs=st.integers(1, 40), outputs=st.integers(1, 40), turned=st.booleans())
def test_matrices_are_multiplied_as_they_lie(
    kind: type[LaidOutWeight], rows: int, inputs: int, outputs: int, turned: bool
) -> None:
    draw = torch.Generator().manual_seed(rows)
    x, weight = torch.randn(rows, inputs, generator=draw), torch.randn(outputs, inputs, generator=draw)
    if turned:
        x, weight = x.t().contiguous().t(), weight.t().contiguous().t()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul, "_kind", lambda: kind)
        for dtype in (torch.float32, torch.float64):
            got = matmul.product(x.to(dtype), weight.to(dtype))
            torch.testing.assert_close(got, linear(x.to(dtype), weight.to(dtype)), rtol=1e-5, atol=1e-5)


@kinds
def test_what_cannot_be_read_as_it_lies_is_refused(kind: type[LaidOutWeight]) -> None:
    laid_out = kind(torch.ones(2, 3))
    with pytest.raises(TypeError, match="takes float32 on the CPU"):
        laid_out.times(torch.ones(1, 3, dtype=torch.float64), None)
    with pytest.raises(ValueError, match="takes rows of 3, got 2"):
        laid_out.times(torch.ones(1, 2), None)
    for weight in (torch.ones(3, 2).t(), torch.ones(2, 3).double()):
        with pytest.raises(ValueError, match="contiguous float32"):
            kind(weight)


@kinds
def test_another_default_type_changes_nothing(kind: type[LaidOutWeight]) -> None:
    laid_out, x = kind(torch.ones(2, 3)), torch.ones(1, 3)
    torch.set_default_dtype(torch.float64)
    try:
        assert matmul._is_right(kind)
        assert torch.equal(laid_out.times(x, None), torch.full((1, 2), 3.0, dtype=torch.float32))
    finally:
        torch.set_default_dtype(torch.float32)


@kinds
def test_laying_out_again_takes_no_more_memory(kind: type[LaidOutWeight]) -> None:
    weights = [torch.ones(512, 256) for _ in range(20)]
    laid_out = [kind(weight) for weight in weights]
    x = torch.ones(4, 256)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    before = resident()
    for weight in laid_out:
        weight.times(x, None)
    first = resident() - before
    for _ in range(5):
        for weight in weights:
            weight.mul_(2)
        for again in laid_out:
            again.times(x, None)
    size = sum(weight.numel() * 4 for weight in weights)
    assert first < 1.5 * size
    assert resident() - before < 1.5 * size


@needs_mkl
def test_a_limit_on_address_space_counts_all_that_is_reserved(taken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken(MklWeight)
    weight = torch.ones(192, 576)
    assert matmul.layout_bytes(weight) == weight.numel() * 4
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 40, 1 << 40))
    assert matmul.layout_bytes(weight) == len(MklWeight(weight)._memory)


def test_where_onednn_has_given_up_torch_s_own_product_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = torch.randn(5, 7), torch.randn(3, 7), torch.randn(3)
    laid_out = OneDnnWeight(weight)
    laid_out.times(x, bias)
    monkeypatch.setattr(matmul, "_kind", lambda: OneDnnWeight)

    def refuse(*_: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", refuse)
    message, expected = "could not create a primitive", torch.nn.functional.linear(x, weight, bias)
    assert torch.equal(matmul.product(x, weight, bias), expected)
    assert torch.equal(laid_out.times(x, bias), expected)
    message = "can't allocate memory"
    for refused in (lambda: matmul.product(x, weight, bias), lambda: laid_out.times(x, bias)):
        with pytest.raises(RuntimeError, match="can't allocate"):
            refused()
