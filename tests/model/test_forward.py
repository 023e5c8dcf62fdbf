"""Forwards of a packed row."""

import torch
from fakes import tiny_policy

from ttrl_pop.model.forward import recompute_layers
from ttrl_pop.packing.pack import Tree, pack
from ttrl_pop.types import Mind


def test_layers_are_computed_again_where_there_is_a_gradient() -> None:
    policy = tiny_policy()
    calls: list[int] = []
    policy.network.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    recompute_layers(policy.network)
    packed = pack([Tree((3, 4, 5), Mind(1))], policy.device)
    with policy.population.embody(packed.minds_M or (), packed.mind_N, packed.positions_N):
        policy.hidden(packed).sum().backward()
    assert len(calls) == 2
    with torch.no_grad():
        policy.hidden(packed)
    assert len(calls) == 3


def test_to_ask_again_for_layers_to_be_computed_again_changes_nothing() -> None:
    policy = tiny_policy()
    layers = list(policy.network.model.layers)
    plain = [layer.forward for layer in layers]
    recompute_layers(policy.network)
    once = [layer.forward for layer in layers]
    recompute_layers(policy.network)
    assert [layer.forward for layer in layers] == once
    assert once != plain
