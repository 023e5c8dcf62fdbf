"""Layers that read the same states, multiplied as one: the products of each by itself, whoever asks and when."""

from typing import Any

import pytest
import torch
from fakes import tiny_model, tiny_policy
from torch import Tensor
from torch.nn.functional import linear

from ttrl_pop.config import LoraConfig
from ttrl_pop.kernels import install, matmul
from ttrl_pop.kernels.joined import Joined, _Made
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
    x = drawn(2, 4, 5)
    for turn in range(2):
        for part, weight, bias in zip(own.parts, weights, biases, strict=True):
            # Each layer sees the states in rows, which are other tensors on the same memory.
            y = part.times(x.view(-1, 5), bias)
            torch.testing.assert_close(y, linear(x, weight, bias).view(-1, len(weight)), rtol=1e-5, atol=1e-5)
        assert len(calls) == turn + 1
        assert own._made is None, "nothing is held once all have theirs"
        x += 1


@kinds
def test_other_states_have_products_of_their_own(kind: type[LaidOutWeight]) -> None:
    own, weights = joined(kind)
    first, second, third = own.parts
    x, other = drawn(4, 5), drawn(4, 5, seed=1)

    def assert_right(part: Any, weight: Tensor, states: Tensor) -> None:
        torch.testing.assert_close(part.times(states, None), linear(states, weight), rtol=1e-5, atol=1e-5)

    assert_right(first, weights[0], x)
    assert_right(second, weights[1], other)
    assert_right(second, weights[1], x[:3])
    assert_right(second, weights[1], x)
    assert_right(second, weights[1], x)
    assert_right(first, weights[0], x)
    x.mul_(2)
    assert_right(third, weights[2], x)
    square = drawn(5, 5)
    assert_right(first, weights[0], square)
    assert_right(third, weights[2], square.t())
    assert_right(first, weights[0], other)
    assert_right(third, weights[2], other)


@kinds
def test_a_weight_that_has_changed_since_has_no_product_of_before(kind: type[LaidOutWeight]) -> None:
    own, weights = joined(kind)
    first, second, _ = own.parts
    x = drawn(4, 5)
    first.times(x, None)
    second.weight.mul_(-3)
    for _ in range(2):
        torch.testing.assert_close(second.times(x, None), linear(x, weights[1]), rtol=1e-5, atol=1e-5)
        first.times(x, None)
    with torch.inference_mode():
        states = drawn(4, 5)
        for part, weight in zip(own.parts, weights, strict=True):
            torch.testing.assert_close(part.times(states, None), linear(states, weight), rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("count", [1, 40], ids=["joined", "many rows, each by itself"])
def test_adapters_that_learn_are_taken_into_all_of_them(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not KINDS:
        pytest.skip("takes weights that are laid out")
    monkeypatch.setattr(matmul, "_kind", lambda: KINDS[0])
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
        return of.hidden(pack(tuple(Tree(tuple(range(3 + n, 12 + n)), Mind(1), ()) for n in range(count)), of.device))

    for seed in range(2):
        with torch.no_grad():
            found, made = states(policy), len(products)
            torch.testing.assert_close(found, states(apart), rtol=1e-4, atol=1e-4)
            assert len(products) - made == (3 if count == 1 else 5) * policy.network.config.num_hidden_layers
            for of in (policy, apart):
                for number, parameter in enumerate(of.adapter_parameters().values()):
                    parameter.copy_(drawn(*parameter.shape, seed=100 * seed + number) / 5)
    slopes = [
        torch.autograd.grad(states(of).square().sum(), [*of.adapter_parameters().values()]) for of in (policy, apart)
    ]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


@kinds
def test_who_asks_in_between_takes_nobody_elses_products(
    kind: type[LaidOutWeight], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when another thread asks between a look at whose products there are and their taking."""
    own, weights = joined(kind)
    first, second, _ = own.parts
    x, other = drawn(4, 5), drawn(4, 5, seed=1)
    are_of = _Made.are_of

    def interrupted(made: _Made, states: Tensor) -> bool:
        found = are_of(made, states)
        first.times(other, None)
        return found

    first.times(x, None)
    monkeypatch.setattr(_Made, "are_of", interrupted)
    torch.testing.assert_close(second.times(x, None), linear(x, weights[1]), rtol=1e-5, atol=1e-5)
