"""Packing: where tokens lie, who sees whom, and that nothing else in the row can be told."""

from typing import Any

import pytest
import torch
import transformers
from fakes import FAMILIES, own_attention, tiny_network, tiny_policy
from hypothesis import given, settings
from hypothesis import strategies as st

from ttrl_pop import attention
from ttrl_pop.attention import BlockPlan
from ttrl_pop.config import LoraConfig
from ttrl_pop.errors import UsageError
from ttrl_pop.models import LoadedModel
from ttrl_pop.packing import SLACK, Branch, Tree, pack
from ttrl_pop.policy import Policy
from ttrl_pop.populations.base import MEAN, NoPopulation
from ttrl_pop.types import Mind

CPU = torch.device("cpu")
POLICIES = {family: tiny_policy(family) for family in FAMILIES}

seeds = st.sampled_from([0, 11, 12])
runs = st.tuples(st.lists(st.integers(3, 60), max_size=9), seeds)
forests = st.lists(
    st.tuples(st.lists(st.integers(3, 60), min_size=1, max_size=14), seeds, st.lists(runs, max_size=4)),
    min_size=1,
    max_size=5,
)


def trees_of(drawn: list[Any]) -> list[Tree]:
    return [
        Tree(tuple(prompt), Mind(seed), tuple(Branch(tuple(ids), Mind(own)) for ids, own in branches))
        for prompt, seed, branches in drawn
    ]


@settings(max_examples=100, deadline=None)
@given(forests)
def test_every_token_stands_once_at_its_own_position_under_its_own_mind(drawn: list[Any]) -> None:
    forest = trees_of(drawn)
    packed = pack(forest, CPU)
    places = [place for stem in packed.stems for place in stem]
    places += [place for of_tree in packed.branches for branch in of_tree for place in branch]
    assert sorted(places) == list(range(len(packed.ids_N)))
    assert len(packed.ids_N) == sum(tree.tokens for tree in forest)
    for tree, stem, of_tree in zip(forest, packed.stems, packed.branches, strict=True):
        assert packed.ids_N[list(stem)].tolist() == list(tree.prompt_ids)
        assert packed.positions_N[list(stem)].tolist() == list(range(len(stem)))
        assert {packed.minds_M[i] for i in packed.place_N[list(stem)]} == {tree.mind}
        for branch, at in zip(tree.branches, of_tree, strict=True):
            assert packed.ids_N[list(at)].tolist() == list(branch.ids)
            assert packed.positions_N[list(at)].tolist() == list(range(len(stem), len(stem) + len(at)))
            assert {packed.minds_M[i] for i in packed.place_N[list(at)]} <= {branch.mind}


@settings(max_examples=100, deadline=None)
@given(forests)
def test_blocks_hold_every_query_once_and_waste_little(drawn: list[Any]) -> None:
    forest = trees_of(drawn)
    packed = pack(forest, CPU)
    plan = packed.plan
    assert isinstance(plan, BlockPlan)
    places = torch.cat(
        [
            torch.arange(b.queries_RL.start, b.queries_RL.stop)
            if isinstance(b.queries_RL, slice)
            else b.queries_RL.flatten()
            for b in plan.blocks
        ]
    )
    assert places[plan.order_N if plan.order_N is not None else slice(None)].tolist() == list(range(len(packed.ids_N)))
    pairs = sum(
        block.rows * block.query_positions_RL.shape[1] * block.key_positions_RS.shape[1] for block in plan.blocks
    )
    stems = [len(t.prompt_ids) + (len(t.branches[0].ids) if t.is_chain else 0) for t in forest]
    twigs = [(len(b.ids), len(t.prompt_ids) + len(b.ids)) for t in forest if not t.is_chain for b in t.branches]
    assert pairs <= SLACK * (sum(n * n for n in stems) + sum(length * reach for length, reach in twigs))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None)
@given(drawn=forests)
def test_a_packed_sequence_reads_as_it_does_alone(family: str, drawn: list[Any]) -> None:
    policy, forest = POLICIES[family], trees_of(drawn)
    with torch.no_grad():
        packed = pack(forest, CPU)
        together = policy.hidden(packed)
        for tree, stem, of_tree in zip(forest, packed.stems, packed.branches, strict=True):
            for branch, at in zip(tree.branches, of_tree, strict=True):
                if branch.mind != tree.mind:
                    continue
                alone = policy.hidden(pack([Tree(tree.prompt_ids + branch.ids, tree.mind)], CPU))
                torch.testing.assert_close(together[[*stem, *at]], alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_branch_sees_its_own_prompt_and_itself_and_nothing_else(family: str) -> None:
    policy = POLICIES[family]
    mind, other = Mind(11), Mind(12)
    forest = [
        Tree((5, 6, 7), mind, (Branch((8, 9), mind), Branch((10, 11, 12), other))),
        Tree((5, 6, 7, 13), mind, (Branch((14,), other), Branch((15, 16), mind))),
    ]
    with torch.no_grad():
        before = policy.hidden(pack(forest, CPU))
        for t, tree in enumerate(forest):
            for b in range(len(tree.branches)):
                changed = list(forest)
                twigs = list(tree.branches)
                twigs[b] = Branch(tuple(20 + i for i in twigs[b].ids), twigs[b].mind)
                changed[t] = Tree(tree.prompt_ids, tree.mind, tuple(twigs))
                packed = pack(changed, CPU)
                after = policy.hidden(packed)
                differs = (after - before).abs().amax(-1) > 1e-9
                assert differs.nonzero()[:, 0].tolist() == list(packed.branches[t][b])


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_are_those_of_the_model_itself(family: str) -> None:
    # Longer than the sliding windows of the tiny models, which are 6 wide.
    policy = tiny_policy(family, population=NoPopulation(NoPopulation.Options()))
    prompt, first, second = tuple(range(3, 14)), tuple(range(20, 29)), tuple(range(40, 44))
    packed = pack([Tree(prompt, None, (Branch(first, None), Branch(second, None)))], CPU)
    with torch.no_grad():
        together = policy.logits(policy.hidden(packed))
        for branch, at in zip((first, second), packed.branches[0], strict=True):
            with own_attention(policy.network):
                own = policy.network(input_ids=torch.tensor([prompt + branch]), use_cache=False).logits[0]
            torch.testing.assert_close(together[[*packed.stems[0], *at]], own, rtol=0, atol=1e-9)


def test_gradients_reach_the_prompt_from_every_branch() -> None:
    policy = tiny_policy()
    mind = Mind(11)
    ids = [(8, 9), (10, 11, 12), (13,)]
    prompt = (5, 6, 7)

    def slope(forest: list[Tree]) -> torch.Tensor:
        packed = pack(forest, CPU)
        ends = [at[-1] for of_tree in packed.branches for at in of_tree]
        return torch.autograd.grad(policy.hidden(packed)[ends].sin().sum(), policy.population.mu)[0]

    together = slope([Tree(prompt, mind, tuple(Branch(i, mind) for i in ids))])
    torch.testing.assert_close(together, slope([Tree(prompt, mind, (Branch(i, mind),)) for i in ids]))


def test_sequences_with_and_without_a_mind_do_not_mix() -> None:
    with pytest.raises(ValueError, match="not both"):
        pack([Tree((3,), None), Tree((4,), MEAN)], CPU)


SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
}


def loaded(config: Any) -> LoadedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = transformers.AutoModelForCausalLM.from_config(config)
    return LoadedModel(network.eval().requires_grad_(False), None, 256, frozenset({1}), "")


def test_a_model_whose_sequences_cannot_be_packed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_network()
    loaded = LoadedModel(network, None, 256, frozenset({1}), "")
    # As a model would be whose attention adds what no plan knows of.
    forward = type(network.model.layers[0].self_attn).forward

    def biased(self: object, *arguments: object, **named: object) -> object:
        out, weights = forward(self, *arguments, **named)
        return out + (0.5 if "plan" not in named else 0.0), weights

    monkeypatch.setattr(type(network.model.layers[0].self_attn), "forward", biased)
    with pytest.raises(UsageError, match=r"LlamaForCausalLM cannot be used: .* cannot be packed"):
        Policy(loaded, NoPopulation(NoPopulation.Options()))


def test_attention_with_terms_that_no_plan_knows_is_refused() -> None:
    config = transformers.Gemma2Config(**SHAPE, attn_logit_softcapping=5.0)
    with pytest.raises(UsageError, match="has the term softcap"):
        Policy(loaded(config), NoPopulation(NoPopulation.Options()))


def test_windows_that_layers_do_not_tell_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = transformers.MistralConfig(**SHAPE, sliding_window=64)
    assert Policy(loaded(config), NoPopulation(NoPopulation.Options())).cache_bytes_per_token == 2 * 2 * 4 * 2 * 4
    attend = attention.Sizes.attend
    monkeypatch.setattr(attention.Sizes, "attend", lambda sizes, *given: attend(sizes, *given[:-1], None))
    with pytest.raises(UsageError, match="where its sliding windows are"):
        Policy(loaded(config), NoPopulation(NoPopulation.Options()))


@pytest.mark.parametrize("kind", ["MambaConfig", "BloomConfig"])
def test_models_with_a_state_or_an_attention_of_their_own_are_refused(kind: str) -> None:
    config = getattr(transformers, kind)(vocab_size=40, hidden_size=16, num_hidden_layers=2, n_layer=2)
    with pytest.raises(UsageError, match="takes no attention but its own"):
        Policy(loaded(config), NoPopulation(NoPopulation.Options()))


def test_an_adapter_on_the_output_layer_is_refused() -> None:
    with pytest.raises(UsageError, match="output layer takes no adapter"):
        Policy(
            loaded(transformers.LlamaConfig(**SHAPE)),
            NoPopulation(NoPopulation.Options()),
            LoraConfig(rank=2, targets=("q_proj", "lm_head")),
        )


@pytest.mark.parametrize("knob", ["logit_scale", "logits_scaling", "final_logit_softcapping"])
def test_what_families_do_behind_their_head_is_known(knob: str) -> None:
    configs = {
        "logit_scale": lambda: transformers.CohereConfig(**SHAPE, logit_scale=0.3),
        "logits_scaling": lambda: transformers.GraniteConfig(**SHAPE, logits_scaling=4.0),
        "final_logit_softcapping": lambda: transformers.Gemma3TextConfig(**SHAPE, final_logit_softcapping=0.5),
    }
    model = loaded(configs[knob]())
    network = model.network
    ids = torch.tensor([[3, 9, 27, 5]])
    with torch.no_grad():
        own = network(input_ids=ids, use_cache=False).logits[0]
    policy = Policy(model, NoPopulation(NoPopulation.Options()))
    with torch.no_grad():
        ours = policy.logits(policy.hidden(pack([Tree(tuple(ids[0].tolist()), None)], CPU)))
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-5)
    network.config.update({knob: 7.0})
    with torch.no_grad():
        assert not torch.allclose(policy.logits(policy.hidden(pack([Tree((3, 9, 27, 5), None)], CPU))), own)
