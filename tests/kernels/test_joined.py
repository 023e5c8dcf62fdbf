"""Layers that read the same states, multiplied as one: the products of each by itself."""

from typing import Any

import pytest
import torch
from fakes import tiny_model, tiny_policy
from torch import Tensor
from torch.nn.functional import linear

from ttrl_pop.config import LoraConfig
from ttrl_pop.kernels import install, loops, matmul
from ttrl_pop.kernels.install import _fuse_layer
from ttrl_pop.kernels.joined import Joined
from ttrl_pop.kernels.matmul import LaidOutWeight, MklWeight, OneDnnWeight
from ttrl_pop.model.policy import Policy, with_adapter
from ttrl_pop.packing.pack import Tree, pack
from ttrl_pop.types import Mind

KINDS: list[type[LaidOutWeight]] = [kind for kind in (MklWeight, OneDnnWeight) if matmul._is_right(kind)]
kinds = pytest.mark.parametrize("kind", KINDS)
OUTPUTS = [6, 2, 3]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def joined(kind: type[LaidOutWeight], biases: list[Tensor | None] | None = None) -> tuple[Joined, list[Tensor]]:
    whole = kind(drawn(sum(OUTPUTS), 5))
    own = Joined(whole, OUTPUTS, biases or [None] * 3)
    return own, [*whole.weight.split(OUTPUTS)]


@kinds
@pytest.mark.parametrize("biased", [(), (0, 1, 2), (1,)])
def test_each_has_its_own_product_and_the_whole_is_multiplied_once(
    kind: type[LaidOutWeight], biased: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    biases = [drawn(rows, seed=rows) if place in biased else None for place, rows in enumerate(OUTPUTS)]
    own, weights = joined(kind, biases)
    calls: list[int] = []
    times = kind.times
    monkeypatch.setattr(kind, "times", lambda *given: [calls.append(1), times(*given)][1])
    x = drawn(8, 5)
    for turn in range(2):
        for found, weight, bias in zip(own.times(x), weights, biases, strict=True):
            assert found.width == len(weight)
            torch.testing.assert_close(found.states(), linear(x, weight, bias), rtol=1e-5, atol=1e-5)
        assert len(calls) == turn + 1
        x += 1


@kinds
def test_a_weight_that_has_changed_since_has_no_product_of_before(kind: type[LaidOutWeight]) -> None:
    own, weights = joined(kind)
    x = drawn(4, 5)
    own.times(x)
    own.weights[1].mul_(-3)
    own.up_to_date = [lambda: own.weights[2].fill_(2)]
    for inference in (False, True):
        with torch.inference_mode(inference):
            for found, weight in zip(own.times(x), weights, strict=True):
                torch.testing.assert_close(found.states(), linear(x, weight), rtol=1e-5, atol=1e-5)


def test_layers_are_counted_once_in_whatever_order_a_family_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    if not KINDS:
        pytest.skip("takes weights that are laid out")
    monkeypatch.setattr(matmul, "_kind", lambda: KINDS[0])
    model = tiny_model("llama", dtype=torch.float32)
    for layer in model.network.model.layers:
        layer.self_attn._modules = dict(sorted(layer.self_attn._modules.items()))
    with_adapter(model.network, LoraConfig(rank=2), 0)
    assert [*model.network.model.layers[0].self_attn._modules][:2] == ["k_proj", "o_proj"]
    asked: list[int] = []
    lay_out = matmul.lay_out
    monkeypatch.setattr(matmul, "lay_out", lambda weight: [asked.append(weight.numel()), lay_out(weight)][1])
    found = install._projections(model.network)
    assert sum(asked) == sum(projection.weight.numel() for projection in found.values())


@pytest.mark.parametrize("as_one", [True, False], ids=["layers are one function", "they are not"])
def test_adapters_that_learn_are_taken_into_all_of_them(as_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not KINDS:
        pytest.skip("takes weights that are laid out")
    monkeypatch.setattr(matmul, "_kind", lambda: KINDS[0])
    monkeypatch.setattr("ttrl_pop.kernels.install._fuse_layer", _fuse_layer if as_one else lambda *_: False)
    policy = tiny_policy("qwen2", dtype=torch.float32)
    monkeypatch.setattr("ttrl_pop.kernels.install._groups", lambda network, adapted: [])
    apart = tiny_policy("qwen2", dtype=torch.float32)
    products: list[tuple[int, ...]] = []
    times = LaidOutWeight.times

    def noted(laid_out: LaidOutWeight, *given: Any) -> Tensor:
        products.append(tuple(laid_out.weight.shape))
        return times(laid_out, *given)

    monkeypatch.setattr(LaidOutWeight, "times", noted)

    def states(of: Policy) -> Tensor:
        products.clear()
        return of.hidden(pack((Tree(tuple(range(3, 12)), Mind(1), ()),), of.device))

    one_function = as_one and loops.are_there()
    for seed in range(2):
        with torch.no_grad():
            found, made = states(policy), len(products)
            torch.testing.assert_close(found, states(apart), rtol=1e-4, atol=1e-4)
            # Gates and what they open for are one product in any case; what is asked apart is laid out apart.
            assert made == (4 if one_function else 6) * policy.network.config.num_hidden_layers
            assert len(products) == 7 * policy.network.config.num_hidden_layers
            for of in (policy, apart):
                for number, parameter in enumerate(of.adapter_parameters().values()):
                    parameter.copy_(drawn(*parameter.shape, seed=100 * seed + number) / 5)
    slopes = [
        torch.autograd.grad(states(of).square().sum(), [*of.adapter_parameters().values()]) for of in (policy, apart)
    ]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))
