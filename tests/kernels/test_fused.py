"""Fused layers: values and gradients of those that they replace."""

from typing import Any

import pytest
import torch
from fakes import FAMILIES, logits_of, tiny_network, tiny_policy
from torch import Tensor, nn

from ttrl_pop.kernels import matmul
from ttrl_pop.kernels.fused import Projection, gated_mlp, linear
from ttrl_pop.kernels.install import fuse
from ttrl_pop.kernels.norms import rms_norm
from ttrl_pop.packing.attention import Look
from ttrl_pop.population.base import MEAN
from ttrl_pop.types import Mind


@pytest.mark.parametrize("gain", ["weight", "one plus weight"])
def test_rms_norm_passes_finite_differences(gain: str) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True), torch.randn(8, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, weight, 1e-2, gain), (x,))
    factor = weight if gain == "weight" else 1 + weight
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt() * factor
    torch.testing.assert_close(rms_norm(x, weight, 1e-2, gain), expected)


KINDS = ["frozen", "adapter", "merged"]


def projection(kind: str, inputs: int, outputs: int, has_bias: bool = False) -> Projection:
    weight, down, up = (torch.randn(*s, dtype=torch.float64) for s in ((outputs, inputs), (2, inputs), (outputs, 2)))
    bias = torch.randn(outputs, dtype=torch.float64) if has_bias else None
    if kind == "frozen":
        return Projection(weight, bias)
    merged = torch.empty_like(weight) if kind == "merged" else None
    return Projection(weight, bias, down.requires_grad_(), up.requires_grad_(), 1.5, merged)


def plain(x: Tensor, layer: Projection) -> Tensor:
    y = nn.functional.linear(x, layer.weight, layer.bias)
    return y if layer.down is None or layer.up is None else y + 1.5 * x @ layer.down.t() @ layer.up.t()


def assert_same_values_and_slopes(got: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(got, expected)
    slopes, own = (torch.autograd.grad(y.square().sum(), inputs) for y in (got, expected))
    for slope, wanted in zip(slopes, own, strict=True):
        torch.testing.assert_close(slope, wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_linear_layer_has_the_values_and_slopes_of_a_plain_one(has_bias: bool, kind: str) -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True), projection(kind, 5, 4, has_bias)
    inputs = [x] if layer.down is None or layer.up is None else [x, layer.down, layer.up]
    assert_same_values_and_slopes(linear(x, layer), plain(x, layer), inputs)


@pytest.mark.parametrize("kinds", [*([kind] * 3 for kind in KINDS), ["frozen", "adapter", "merged"]])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_gated_mlp_has_the_values_and_slopes_of_a_plain_one(has_bias: bool, kinds: list[str]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    gate, up, down = (
        projection(kind, inputs, outputs, has_bias)
        for kind, (inputs, outputs) in zip(kinds, [(5, 7), (5, 7), (7, 5)], strict=True)
    )
    expected = plain(nn.functional.silu(plain(x, gate)) * plain(x, up), down)
    adapters = [m for layer in (gate, up, down) for m in (layer.down, layer.up) if m is not None]
    assert_same_values_and_slopes(gated_mlp(x, gate, up, down), expected, [x, *adapters])
    gates: list[Tensor] = []
    silu = nn.functional.silu

    def noted(given: Tensor, inplace: bool = False) -> Tensor:
        gates.append(given)
        return silu(given, inplace)

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "silu", noted)
        torch.testing.assert_close(gated_mlp(x, gate, up, down), expected)
        # Without gradient memory is used again: what was the gate's output now is what `down` has read.
        torch.testing.assert_close(gates[0].view(2, 3, -1), silu(plain(x, gate)) * plain(x, up))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fused_policy_computes_what_it_did(family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = tiny_policy(family, dtype=dtype)
    monkeypatch.setattr("ttrl_pop.model.policy.fuse", lambda *_: None)
    plain = tiny_policy(family, dtype=dtype)
    ids, minds = torch.arange(3, 30).view(3, 9), [Mind(1), MEAN, Mind(2)]
    results = []
    for policy in (plain, fused):
        logits = logits_of(policy, ids, minds)
        named = policy.adapter_parameters() | policy.population_parameters()
        slopes = torch.autograd.grad(logits.float().log_softmax(-1)[..., 5].sum(), list(named.values()))
        results.append((logits, dict(zip(named, slopes, strict=True))))
    (expected, slopes), (got, fused_slopes) = results
    # What bf16 rounds another way goes on from layer to layer: single numbers say little.
    near = 1e-4 if dtype == torch.float32 else 0.1
    for name, slope in {"logits": expected.detach(), **slopes}.items():
        found = {"logits": got.detach(), **fused_slopes}[name]
        assert float((found - slope).norm()) <= near * float(slope.norm()), name


def test_norms_are_replaced_and_what_only_has_such_a_name_is_not() -> None:
    class OddRMSNorm(nn.Module):
        """Normalises by the sum, not the mean."""

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.randn(8)), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / x.square().sum(-1, keepdim=True).sqrt() * self.weight

    network = tiny_network("gemma3")
    network.odd = OddRMSNorm()
    fuse(network, Look())
    replaced = {name for name, module in network.named_modules() if "forward" in vars(module)}
    norms = {name for name, module in network.named_modules() if type(module).__name__ == "Gemma3RMSNorm"}
    assert replaced == norms
    assert len(norms) == 2 * 6 + 1


def test_feed_forward_layers_gated_by_silu_are_replaced_and_others_are_not() -> None:
    class Swapped(nn.Module):
        """Opens by what others multiply with."""

        def __init__(self, mlp: Any) -> None:
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.down_proj(self.gate_proj(x) * nn.functional.silu(self.up_proj(x)))
            return y

    def replaced(family: str) -> list[str]:
        network = tiny_network(family).requires_grad_(False)
        network.model.swapped = Swapped(network.model.layers[0].mlp)
        fuse(network, Look())
        names = {name for name, module in network.named_modules() if "forward" in vars(module)}
        return sorted(name for name in names if name.endswith(("mlp", "swapped")))

    both = ["model.layers.0.mlp", "model.layers.1.mlp"]
    assert replaced("llama") == replaced("qwen3") == both
    assert replaced("gemma3") == []


def test_without_its_adapter_a_fused_policy_is_the_base_model(monkeypatch: pytest.MonkeyPatch) -> None:
    # Products by another library than the model's own round in another way.
    monkeypatch.setattr(matmul, "_kind", lambda: None)
    policy, base = tiny_policy(dtype=torch.float32), tiny_policy(dtype=torch.float32, lora=None)
    ids = torch.arange(3, 12)[None]
    expected = logits_of(base, ids, None)
    assert not torch.allclose(logits_of(policy, ids, None), expected)
    with policy.as_base():
        assert torch.equal(logits_of(policy, ids, None), expected)


def test_merged_weights_follow_every_change_of_the_adapter() -> None:
    policy, ids = tiny_policy(), torch.arange(3, 12)[None]
    before = logits_of(policy, ids, None)
    for parameter in policy.adapter_parameters().values():
        with torch.no_grad():
            parameter.mul_(2)
        after = logits_of(policy, ids, None)
        assert not torch.allclose(after, before)
        before = after
    fresh = tiny_policy()
    for name, parameter in fresh.adapter_parameters().items():
        with torch.no_grad():
            parameter.copy_(policy.adapter_parameters()[name])
    assert torch.equal(logits_of(fresh, ids, None), before)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_adapter_is_merged_where_there_is_room(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttrl_pop.kernels.install.MERGED_SHARE", share)
    merged: list[bool] = []
    times = Projection.times

    def noted(layer: Projection, x: Tensor) -> Tensor:
        merged.extend([layer.merged is not None] if layer.up is not None else [])
        return times(layer, x)

    monkeypatch.setattr(Projection, "times", noted)
    ids = torch.arange(3, 12)[None]
    logits_of(tiny_policy(dtype=torch.float32), ids, None)
    assert set(merged) == {share > 0}
    merged.clear()
    # Weights narrower than the adapter would lose what is learned.
    logits_of(tiny_policy(dtype=torch.bfloat16), ids, None)
    assert set(merged) == {False}
