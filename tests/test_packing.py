"""Packing: where tokens lie, who sees whom, and that nothing else in the row can be told."""

from itertools import chain
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
from ttrl_pop.packing import ALIKE, SLACK, Branch, Pack, Tree, alike, pack
from ttrl_pop.policy import Policy
from ttrl_pop.populations.base import MEAN, NoPopulation
from ttrl_pop.types import Mind

CPU = torch.device("cpu")
POLICIES = {family: tiny_policy(family) for family in FAMILIES}

seeds = st.sampled_from([0, 11, 12])
runs = st.tuples(st.lists(st.integers(3, 60), max_size=9), seeds)
forests = st.tuples(
    # What all prompts begin with.
    st.lists(st.integers(3, 60), max_size=7),
    st.lists(
        st.tuples(st.lists(st.integers(3, 60), min_size=1, max_size=14), seeds, st.lists(runs, max_size=4)),
        min_size=1,
        max_size=5,
    ),
)


def trees_of(drawn: tuple[list[int], list[Any]]) -> list[Tree]:
    beginning, forest = drawn
    return [
        Tree((*beginning, *prompt), Mind(seed), tuple(Branch(tuple(ids), Mind(own)) for ids, own in branches))
        for prompt, seed, branches in forest
    ]


def stems_of(packed: Pack) -> list[tuple[int, ...]]:
    """Places of each prompt."""
    return [tuple(chain(*pieces)) for pieces in packed.stems]


def shared_by(forest: list[Tree]) -> dict[Mind | None, tuple[int, int]]:
    """For each mind the tokens that its prompts begin with alike and that are read once, and the number of prompts."""
    prompts: dict[Mind | None, list[tuple[int, ...]]] = {}
    for tree in forest:
        prompts.setdefault(tree.mind, []).append(tree.prompt_ids)
    found = {}
    for mind, own in prompts.items():
        count = 0
        while len({prompt[: count + 1] for prompt in own}) == 1 and all(len(prompt) > count + 1 for prompt in own):
            count += 1
        worth = len(own) > 1 and count >= ALIKE * max(map(len, own))
        found[mind] = (count if worth else 0, len(own))
    return found


@settings(max_examples=100, deadline=None)
@given(forests)
def test_every_token_stands_once_at_its_own_position_under_its_own_mind(drawn: Any) -> None:
    forest = trees_of(drawn)
    packed = pack(forest, CPU)
    places = {place for stem in stems_of(packed) for place in stem}
    of_branches = [place for of_tree in packed.branches for branch in of_tree for place in branch]
    assert sorted([*places, *of_branches]) == list(range(len(packed.ids_N)))
    read_once = sum(shared * (prompts - 1) for shared, prompts in shared_by(forest).values())
    assert len(packed.ids_N) == sum(tree.tokens for tree in forest) - read_once
    for tree, stem, of_tree in zip(forest, stems_of(packed), packed.branches, strict=True):
        assert packed.ids_N[list(stem)].tolist() == list(tree.prompt_ids)
        assert packed.positions_N[list(stem)].tolist() == list(range(len(stem)))
        assert {packed.minds_M[i] for i in packed.place_N[list(stem)]} == {tree.mind}
        for branch, at in zip(tree.branches, of_tree, strict=True):
            assert packed.ids_N[list(at)].tolist() == list(branch.ids)
            assert packed.positions_N[list(at)].tolist() == list(range(len(stem), len(stem) + len(at)))
            assert {packed.minds_M[i] for i in packed.place_N[list(at)]} <= {branch.mind}


@settings(max_examples=100, deadline=None)
@given(forests)
def test_blocks_hold_every_query_once_and_waste_little(drawn: Any) -> None:
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
    shared = {mind: count for mind, (count, _) in shared_by(forest).items()}
    useful = sum(count * count for count in shared.values())
    for tree in forest:
        reach = len(tree.prompt_ids) + (len(tree.branches[0].ids) if tree.is_chain else 0)
        useful += (reach - shared[tree.mind]) * reach
        for branch in () if tree.is_chain else tree.branches:
            useful += len(branch.ids) * (len(tree.prompt_ids) + len(branch.ids))
    assert pairs <= SLACK * useful


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None)
@given(drawn=forests)
def test_a_packed_sequence_reads_as_it_does_alone(family: str, drawn: Any) -> None:
    policy, forest = POLICIES[family], trees_of(drawn)
    with torch.no_grad():
        packed = pack(forest, CPU)
        together = policy.hidden(packed)
        for tree, stem, of_tree in zip(forest, stems_of(packed), packed.branches, strict=True):
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
    first, second = tuple(range(20, 29)), tuple(range(40, 44))
    prompts = [tuple(range(3, 14)), (*range(3, 11), 7, 5)]
    packed = pack([Tree(prompt, None, (Branch(first, None), Branch(second, None))) for prompt in prompts], CPU)
    assert len(packed.ids_N) == 8 + 3 + 2 + 2 * (9 + 4)
    with torch.no_grad():
        together = policy.logits(policy.hidden(packed))
        for prompt, stem, of_tree in zip(prompts, stems_of(packed), packed.branches, strict=True):
            for branch, at in zip((first, second), of_tree, strict=True):
                with own_attention(policy.network):
                    own = policy.network(input_ids=torch.tensor([prompt + branch]), use_cache=False).logits[0]
                torch.testing.assert_close(together[[*stem, *at]], own, rtol=0, atol=1e-9)


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


def test_gradients_reach_what_prompts_begin_with_from_all_of_them() -> None:
    policy = tiny_policy()
    forest = [Tree((5, 6, 7, 8, own), Mind(11), (Branch((9, own), Mind(11)),)) for own in (20, 21, 22)]

    def slope(forest: list[Tree]) -> torch.Tensor:
        packed = pack(forest, CPU)
        ends = [at[-1] for of_tree in packed.branches for at in of_tree]
        return torch.autograd.grad(policy.hidden(packed)[ends].sin().sum(), policy.population.mu)[0]

    assert len(pack(forest, CPU).ids_N) == 4 + 3 * 3
    torch.testing.assert_close(slope(forest), sum(slope([tree]) for tree in forest))


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([(1, 2, 3)], 0),
        ([(1, 2, 3), (1, 2, 4)], 2),
        ([(1, 2), (1, 2)], 1),
        ([(1,), (1, 2, 3)], 0),
        ([(2, 1), (1, 1)], 0),
        ([(1, 2, *range(10, 24)), (1, 2, 3), (1, 2, 9, 9)], 2),
        ([(1, 2, *range(10, 25)), (1, 2, 3), (1, 2, 9, 9)], 0),
    ],
)
def test_what_prompts_begin_with_alike(prompts: list[tuple[int, ...]], expected: int) -> None:
    assert alike(prompts) == expected


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
