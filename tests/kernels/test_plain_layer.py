"""Decoder layers as one function: what they compute, and when it is asked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from fakes import FAMILIES, logits_of, norm_noise, requests, tiny_network, tiny_policy
from torch import Tensor, nn

from ttrl_pop.config import LoraConfig, SamplingConfig
from ttrl_pop.kernels import loops
from ttrl_pop.kernels.install import fuse
from ttrl_pop.kernels.norms import AddOffset
from ttrl_pop.kernels.plain_layer import PlainLayer
from ttrl_pop.model.forward import hidden_states
from ttrl_pop.model.policy import Policy
from ttrl_pop.packing.attention import NAME, Look
from ttrl_pop.packing.pack import Tree, pack
from ttrl_pop.population.base import MEAN, NoPopulation, Population
from ttrl_pop.population.latent import Latent
from ttrl_pop.population.options import LatentOptions
from ttrl_pop.sample.hf.backend import HfBackend
from ttrl_pop.types import Mind

pytestmark = pytest.mark.skipif(not loops.are_there(), reason="takes numba: extra fast")
PLAIN = ("llama", "qwen2", "qwen3", "mistral")
IDS, MINDS = torch.arange(3, 30).view(3, 9), [Mind(1), MEAN, Mind(2)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers that were asked as one function."""
    calls: list[int] = []
    own = PlainLayer.__call__

    def noted(layer: PlainLayer, *given: Any, **named: Any) -> Tensor:
        calls.append(layer.number)
        return own(layer, *given, **named)

    monkeypatch.setattr(PlainLayer, "__call__", noted)
    return calls


@contextmanager
def by_modules() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlainLayer, "fits", lambda *_, **__: False)
        yield


def latent() -> Latent:
    return Latent(LatentOptions(bits=3))


def population(kind: str) -> Population:
    return norm_noise(level="token") if kind == "token" else norm_noise() if kind == "sequence" else latent()


def policy_of(family: str, kind: str = "sequence", lora: LoraConfig | None = LoraConfig(rank=2, alpha=4)) -> Policy:  # noqa: B008
    policy = tiny_policy(family, population(kind), dtype=torch.float32, lora=lora)
    if isinstance(policy.population, Latent):
        shape = policy.population.directions.shape
        policy.population.set_fit(torch.randn(shape, generator=torch.Generator().manual_seed(0)), 1.0, 1.0)
    return policy


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=4)], ids=["frozen", "adapter"])
@pytest.mark.parametrize("kind", ["sequence", "token", "latent"])
@pytest.mark.parametrize("family", PLAIN)
@torch.no_grad()
def test_a_layer_as_one_function_is_what_its_modules_compute(
    family: str, kind: str, lora: LoraConfig | None, asked: list[int]
) -> None:
    policy = policy_of(family, kind, lora)
    asked.clear()
    found = [logits_of(policy, IDS, minds) for minds in (MINDS, None)]
    assert len(asked) == 2 * policy.network.config.num_hidden_layers
    with by_modules():
        expected = [logits_of(policy, IDS, minds) for minds in (MINDS, None)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_families_whose_layers_are_of_another_form_are_asked_by_modules(family: str, asked: list[int]) -> None:
    policy = tiny_policy(family, dtype=torch.float32)
    asked.clear()
    dict(HfBackend(policy, SamplingConfig(max_new_tokens=3, max_rows=5)).rollouts(requests(policy, 2, 2)))
    assert bool(asked) == (family in PLAIN)


def test_gradients_other_types_and_the_base_model_are_asked_by_modules(asked: list[int]) -> None:
    policy = policy_of("llama")
    asked.clear()
    logits_of(policy, IDS, MINDS)
    with torch.no_grad(), policy.as_base():
        logits_of(policy, IDS, None)
    with torch.no_grad():
        logits_of(tiny_policy(dtype=torch.float64), IDS, MINDS)
    assert not asked
    with torch.no_grad():
        logits_of(policy, IDS, MINDS)
    assert asked


def inner(network: Any) -> dict[str, nn.Module]:
    layer = network.model.layers[1]
    attention, mlp = layer.self_attn, layer.mlp
    return {
        "attention": attention,
        "queries": attention.q_proj,
        "keys": attention.k_proj,
        "out": attention.o_proj,
        "mlp": mlp,
        "gate": mlp.gate_proj,
        "down": mlp.down_proj,
        "norm": layer.input_layernorm,
        "second norm": layer.post_attention_layernorm,
        "head norm": attention.q_norm,
    }


HOOKS: dict[str, Callable[[nn.Module, Callable[..., Any]], Any]] = {
    "before": lambda module, call: module.register_forward_pre_hook(lambda *_: call()),
    "behind": lambda module, call: module.register_forward_hook(lambda *_: call()),
}


@pytest.mark.parametrize("when", HOOKS)
@pytest.mark.parametrize("name", inner(tiny_network("qwen3")))
@torch.no_grad()
def test_a_hook_on_any_part_of_a_layer_runs(name: str, when: str, asked: list[int]) -> None:
    policy = policy_of("qwen3")
    part, calls = inner(policy.network)[name], []
    expected = logits_of(policy, IDS, MINDS)
    handle = HOOKS[when](part, lambda: calls.append(1) and None)
    asked.clear()
    torch.testing.assert_close(logits_of(policy, IDS, MINDS), expected, rtol=1e-5, atol=1e-5)
    assert calls
    assert set(asked) == {0}, "the layer beside it is asked as before"
    handle.remove()
    logits_of(policy, IDS, MINDS)
    assert set(asked) == {0, 1}


class Doubled(nn.Module):
    """Stands in the place of another module."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own = own

    def forward(self, *given: Any, **named: Any) -> Any:
        y = self.own(*given, **named)
        return (2 * y[0], *y[1:]) if isinstance(y, tuple) else 2 * y


@pytest.mark.parametrize("by", ["module", "forward"])
@pytest.mark.parametrize("name", ["self_attn", "mlp", "input_layernorm", "self_attn.v_proj", "mlp.down_proj"])
@torch.no_grad()
def test_what_stands_in_the_place_of_a_part_is_asked(name: str, by: str, asked: list[int]) -> None:
    policy = policy_of("llama")
    before = logits_of(policy, IDS, MINDS)
    layer = policy.network.model.layers[1]
    part = layer.get_submodule(name)
    if by == "module":
        layer.set_submodule(name, Doubled(part))
    else:
        own = part.forward
        part.forward = lambda *given, **named: Doubled.forward(SimpleNamespace(own=own), *given, **named)  # type: ignore[arg-type]
    asked.clear()
    found = logits_of(policy, IDS, MINDS)
    assert set(asked) == {0}
    assert not torch.allclose(found, before)


@torch.no_grad()
def test_a_family_that_turns_a_part_of_each_head_is_asked_by_modules(asked: list[int]) -> None:
    config = transformers.Glm4MoeConfig(
        vocab_size=256,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        first_k_dense_replace=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=256,
    )
    network: Any = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    network.set_attn_implementation(NAME)
    packed = pack([Tree(tuple(row.tolist()), None) for row in IDS], torch.device("cpu"))
    expected = hidden_states(network, packed)
    fuse(network, Look())
    assert asked, "with angles for whole heads they are of the plain form"
    asked.clear()
    torch.testing.assert_close(hidden_states(network, packed), expected, rtol=1e-5, atol=1e-5)
    assert not asked


@torch.no_grad()
def test_offsets_of_another_type_are_added_in_that_of_the_states() -> None:
    policy = policy_of("llama")
    layer = policy.network.model.layers[0]
    rows = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    layer.input_layernorm._forward_hooks.clear()
    layer.input_layernorm.register_forward_hook(AddOffset(lambda count: (rows, torch.arange(27) % 2)))
    found = logits_of(policy, IDS, MINDS)
    with by_modules():
        torch.testing.assert_close(found, logits_of(policy, IDS, MINDS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["post_attention_layernorm", "self_attn.o_proj"])
@torch.no_grad()
def test_the_only_hook_of_a_part_runs(name: str, asked: list[int]) -> None:
    policy = policy_of("llama", "latent")
    part = policy.network.model.layers[1].get_submodule(name)
    before = logits_of(policy, IDS, None)
    rows = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), torch.arange(27) % 2
    hooks: list[Any] = [AddOffset(lambda count: rows), lambda module, given, y: y + rows[0][rows[1]]]
    found = []
    for hook in hooks:
        handle = part.register_forward_hook(hook)
        asked.clear()
        found.append(logits_of(policy, IDS, None))
        assert (1 in asked) == (hook is hooks[0] and name.endswith("norm"))
        handle.remove()
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0], before)


def test_hooks_that_are_there_before_are_not_run_by_the_look(asked: list[int]) -> None:
    class Unsettled(NoPopulation):
        def attach(self, network: nn.Module) -> None:
            super().attach(network)
            self.is_settled = False
            network.get_submodule("model.layers.0.self_attn").register_forward_hook(self.hook)

        def hook(self, *_: Any) -> None:
            if not self.is_settled:
                raise KeyError("what settle makes")

        def settle(self, network: nn.Module) -> None:
            self.is_settled = True

    policy = tiny_policy(population=Unsettled(NoPopulation.Options()), dtype=torch.float32)
    asked.clear()
    with torch.no_grad():
        logits_of(policy, IDS, None)
    assert set(asked) == {1}


def test_where_memory_runs_out_a_layer_is_not_taken_for_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes")

    monkeypatch.setattr(loops, "turn", exhausted)
    with pytest.raises(RuntimeError, match="can't allocate"):
        tiny_policy(dtype=torch.float32)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.register_module("extra", nn.Identity()),
        lambda layer: layer.self_attn.register_module("extra", nn.Identity()),
        lambda layer: setattr(layer.self_attn, "v_proj", nn.Sequential(layer.self_attn.v_proj)),
        lambda layer: layer.mlp.gate_proj.weight.requires_grad_(),
        lambda layer: setattr(layer, "forward", lambda x, **given: 0.5 * type(layer).forward(layer, x, **given)),
        lambda layer: setattr(layer, "forward", lambda x, **given: (type(layer).forward(layer, x, **given),)),
    ],
    ids=[
        "a part more",
        "a part of attention more",
        "values otherwise",
        "a weight that learns",
        "half",
        "a tuple",
    ],
)
def test_a_layer_that_computes_something_else_is_left_alone(change: Callable[[Any], Any]) -> None:
    network: Any = tiny_network("llama", dtype=torch.float32).requires_grad_(False)
    network.set_attn_implementation("ttrl_pop")
    change(network.model.layers[0])
    fuse(network, Look())

    def is_one(layer: nn.Module) -> bool:
        cells = getattr(vars(layer).get("forward"), "__closure__", None) or ()
        return any(isinstance(cell.cell_contents, PlainLayer) for cell in cells)

    assert [is_one(layer) for layer in network.model.layers] == [False, True]


@torch.no_grad()
def test_states_that_come_in_are_not_written_to_and_the_layers_own_are_kept_by_hooks() -> None:
    policy = policy_of("llama")
    kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def note(module: nn.Module, given: Any, out: Tensor) -> None:
        kept.append((given[0], given[0].clone(), out))

    for layer in policy.network.model.layers:
        layer.register_forward_hook(note)
    logits_of(policy, IDS, MINDS)
    assert len(kept) == 2
    for given, copy, _ in kept:
        assert torch.equal(given, copy)
    assert torch.equal(kept[0][2], kept[1][1])


@torch.no_grad()
def test_a_window_is_the_layers_own() -> None:
    policy = policy_of("mistral")
    windows = {
        cell.cell_contents.window
        for layer in policy.network.model.layers
        for cell in layer.forward.__closure__
        if isinstance(cell.cell_contents, PlainLayer)
    }
    assert windows == {policy.network.config.sliding_window}
    long = torch.arange(3, 3 + 2 * policy.network.config.sliding_window)[None] % 60 + 3
    found = logits_of(policy, long, [Mind(1)])
    with by_modules():
        torch.testing.assert_close(found, logits_of(policy, long, [Mind(1)]), rtol=1e-5, atol=1e-5)
