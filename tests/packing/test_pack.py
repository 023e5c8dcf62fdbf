"""Packing: where tokens lie, who sees whom, and that nothing else in the row can be told."""

from itertools import chain
from typing import Any

import pytest
import torch
import transformers
from fakes import FAMILIES, own_attention, tiny_network, tiny_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ttrl_pop.config import LoraConfig
from ttrl_pop.errors import UsageError
from ttrl_pop.model.load import LoadedModel
from ttrl_pop.model.logprobs import selected_logprobs
from ttrl_pop.model.policy import Policy
from ttrl_pop.packing import attention, radix
from ttrl_pop.packing.attention import BlockPlan
from ttrl_pop.packing.pack import Branch, Pack, Tree, pack
from ttrl_pop.packing.plan import SLACK
from ttrl_pop.packing.radix import PARTING_KEYS, alike
from ttrl_pop.population.base import MEAN, NoPopulation
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


def flat(pieces: tuple[range, ...]) -> list[int]:
    return list(chain(*pieces))


def sequences_of(forest: list[Tree], packed: Pack) -> list[tuple[list[tuple[int, Any]], list[int]]]:
    """Every token with the mind that reads it, and where it is, for each prompt and each branch behind its prompt."""
    found = []
    for tree, stem, of_tree in zip(forest, packed.stems, packed.branches, strict=True):
        prompt = [(token, tree.mind) for token in tree.prompt_ids]
        found.append((prompt, flat(stem)))
        for branch, at in zip(tree.branches, of_tree, strict=True):
            found.append((prompt + [(token, branch.mind) for token in branch.ids], flat(stem) + flat(at)))
    return found


@settings(max_examples=200, deadline=None)
@given(forests)
def test_every_token_stands_at_its_own_position_under_its_own_mind_behind_its_own_past(drawn: Any) -> None:
    forest = trees_of(drawn)
    packed = pack(forest, CPU)
    pasts: dict[int, list[tuple[int, Any]]] = {}
    for sequence, places in sequences_of(forest, packed):
        assert len(places) == len(sequence)
        for i, place in enumerate(places):
            assert int(packed.positions_N[place]) == i
            assert (int(packed.ids_N[place]), packed.minds_M[packed.mind_N[place]]) == sequence[i]
            # What shares a place shares all that comes before.
            assert pasts.setdefault(place, sequence[: i + 1]) == sequence[: i + 1]
    # A prompt that is read again for a completion, as that costs less, is told of once.
    assert set(pasts) <= set(range(len(packed.ids_N)))


@settings(max_examples=200, deadline=None)
@given(forests)
def test_where_keys_cost_nothing_every_beginning_is_read_once(drawn: Any) -> None:
    forest = trees_of(drawn)
    packed = pack(forest, CPU)
    sequences = [sequence for sequence, _ in sequences_of(forest, packed)]
    beginnings = {tuple(s[: i + 1]) for s in sequences for i in range(len(s))}
    # At most all sequences side by side: a short prompt is read again for a long completion.
    assert len(beginnings) <= len(packed.ids_N) <= sum(map(len, sequences))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(radix, "ALIKE", 0.0)
        patch.setattr(radix, "PARTING_KEYS", 10**6)
        whole = pack(forest, CPU)
    assert len(whole.ids_N) == len(beginnings)
    assert {place for _, places in sequences_of(forest, whole) for place in places} == set(range(len(beginnings)))


def test_completions_that_begin_alike_are_read_once_until_they_part() -> None:
    mind, other = Mind(1), Mind(2)
    prompt = tuple(range(10, 20))
    endings = [(1, 2, 3), (1, 2, 4), (1, 2), (1, 5), (6,), (1, 2, 3), ()]

    def tokens(own: Mind) -> tuple[int, list[list[int]]]:
        packed = pack([Tree(prompt, mind, tuple(Branch(ids, own) for ids in endings))], CPU)
        return len(packed.ids_N), [flat(at) for at in packed.branches[0]]

    for own in (mind, other):
        count, places = tokens(own)
        # 1 and 2 stand once, 3, 4, 5 and 6 as often as they are different.
        assert count == len(prompt) + 6
        assert places[0] == places[5]
        assert places[0][:2] == places[1][:2] == places[2]
        assert places[3][:1] == places[2][:1]
        assert places[6] == []
    # For one token of two completions the keys would be too many: they go side by side.
    long = tuple(range(100, 100 + 2 * PARTING_KEYS))

    def tokens_behind(prompt: tuple[int, ...], *endings: tuple[int, ...]) -> int:
        packed = pack([Tree(prompt, mind, tuple(Branch(ids, mind) for ids in endings))], CPU)
        return len(packed.ids_N) - len(prompt)

    assert tokens_behind(long, (1, 2), (1, 3), (4,)) == 5
    assert tokens_behind(long, (1, 2, 5, 6), (1, 2, 5, 7), (4,)) == 6
    # What all go on with is part of the prompt's own run.
    assert tokens_behind(long, (1, 2), (1, 3)) == 3
    # Long completions of a short prompt see no keys but their own, which costs less.
    assert tokens_behind((9,), long, long[1:]) == 1 + 2 * len(long) - 1


@settings(max_examples=200, deadline=None)
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
    # A row counts its different tokens times all that the last of them sees.
    useful = 0
    for block in plan.blocks:
        own = block.queries_RL
        rows = torch.arange(own.start, own.stop).view(block.rows, -1) if isinstance(own, slice) else own
        for row in rows:
            useful += len(set(row.tolist())) * (int(packed.positions_N[row].max()) + 1)
    assert pairs <= SLACK * useful


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None)
@given(drawn=forests)
def test_a_packed_sequence_reads_as_it_does_alone(family: str, drawn: Any) -> None:
    policy, forest = POLICIES[family], trees_of(drawn)
    with torch.no_grad():
        packed = pack(forest, CPU)
        together = policy.hidden(packed)
        for tree, stem, of_tree in zip(forest, packed.stems, packed.branches, strict=True):
            for branch, at in zip(tree.branches, of_tree, strict=True):
                if branch.mind != tree.mind:
                    continue
                alone = policy.hidden(pack([Tree(tree.prompt_ids + branch.ids, tree.mind)], CPU))
                torch.testing.assert_close(together[flat(stem) + flat(at)], alone, rtol=0, atol=1e-9)


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
                assert differs.nonzero()[:, 0].tolist() == flat(packed.branches[t][b])


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
        for prompt, stem, of_tree in zip(prompts, packed.stems, packed.branches, strict=True):
            for branch, at in zip((first, second), of_tree, strict=True):
                with own_attention(policy.network):
                    own = policy.network(input_ids=torch.tensor([prompt + branch]), use_cache=False).logits[0]
                torch.testing.assert_close(together[flat(stem) + flat(at)], own, rtol=0, atol=1e-9)


def test_gradients_reach_the_prompt_from_every_branch() -> None:
    policy = tiny_policy()
    mind = Mind(11)
    ids = [(8, 9), (10, 11, 12), (13,)]
    prompt = (5, 6, 7)

    def slope(forest: list[Tree]) -> torch.Tensor:
        packed = pack(forest, CPU)
        ends = [at[-1][-1] for of_tree in packed.branches for at in of_tree]
        return torch.autograd.grad(policy.hidden(packed)[ends].sin().sum(), policy.population.mu)[0]

    together = slope([Tree(prompt, mind, tuple(Branch(i, mind) for i in ids))])
    torch.testing.assert_close(together, slope([Tree(prompt, mind, (Branch(i, mind),)) for i in ids]))


def test_gradients_reach_what_prompts_begin_with_from_all_of_them() -> None:
    policy = tiny_policy()
    forest = [Tree((5, 6, 7, 8, own), Mind(11), (Branch((9, own), Mind(11)),)) for own in (20, 21, 22)]

    def slope(forest: list[Tree]) -> torch.Tensor:
        packed = pack(forest, CPU)
        ends = [at[-1][-1] for of_tree in packed.branches for at in of_tree]
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


KNOBS: dict[str, Any] = {
    "logit_scale": lambda: transformers.CohereConfig(**SHAPE, logit_scale=0.3),
    "logits_scaling": lambda: transformers.GraniteConfig(**SHAPE, logits_scaling=4.0),
    "final_logit_softcapping": lambda: transformers.Gemma3TextConfig(**SHAPE, final_logit_softcapping=0.5),
}


@pytest.mark.parametrize("knob", KNOBS)
def test_what_families_do_behind_their_head_is_known(knob: str) -> None:
    model = loaded(KNOBS[knob]())
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


@pytest.mark.parametrize("knob", [*KNOBS, "bias"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_states_that_predict_several_tokens_have_the_slopes_of_states_apart(
    knob: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy(loaded((KNOBS.get(knob) or KNOBS["logits_scaling"])()), NoPopulation(NoPopulation.Options()))
    if knob == "bias":
        policy.network.get_output_embeddings().bias = nn.Parameter(torch.randn(40), requires_grad=False)
    monkeypatch.setattr("ttrl_pop.model.logprobs.LOGIT_ROWS", 2)
    torch.manual_seed(0)
    hidden = torch.randn(5, 16, requires_grad=True)
    # The third state predicts nothing, the last two are of a chunk that ends with one.
    states, targets = torch.tensor([0, 0, 0, 1, 3, 3, 4]), torch.tensor([7, 8, 9, 39, 0, 2, 5])
    got = selected_logprobs(policy.network, hidden, states, targets, temperature)
    expected = (policy.logits(hidden) / temperature).log_softmax(-1)[states, targets]
    torch.testing.assert_close(got, expected)
    weights = torch.randn(7)
    slopes, own = (torch.autograd.grad((weights * y.sin()).sum(), hidden)[0] for y in (got, expected))
    torch.testing.assert_close(slopes, own)
    assert slopes[2].eq(0).all()
    nothing = torch.zeros(0, dtype=torch.long)
    assert len(selected_logprobs(policy.network, hidden[:0], nothing, nothing, temperature)) == 0


@pytest.mark.parametrize("sharpness", [4.0, 24.0, 32.0, 40.0])
def test_slopes_of_likely_tokens_survive_bf16(sharpness: float) -> None:
    """Taken as a difference of two vectors in bf16, the slope of a token at p = 0.997 is all rounding."""
    model = loaded(KNOBS["logits_scaling"]())
    torch.manual_seed(0)
    weight = torch.randn(40, 16).to(torch.bfloat16)
    model.network.get_output_embeddings().weight = nn.Parameter(weight, requires_grad=False)
    # Each state leans towards one token, and the last predicts two: the likeliest, and the one behind it.
    targets = torch.arange(7)
    hidden = (weight[targets].float() * sharpness / weight[targets].float().square().sum(-1, keepdim=True)).bfloat16()
    states, targets = torch.tensor([*range(7), 6]), torch.tensor([*range(7), 7])
    hidden.requires_grad_()
    got = selected_logprobs(model.network, hidden, states, targets, 1.0)
    exact = hidden.detach().double().requires_grad_()
    divisor = model.network.config.logits_scaling
    expected = (exact @ weight.double().T / divisor).log_softmax(-1)[states, targets]
    for each in range(len(states)):
        (slope,) = torch.autograd.grad(got[each], hidden, retain_graph=True)
        (own,) = torch.autograd.grad(expected[each], exact, retain_graph=True)
        assert (slope.double() - own).norm() <= 0.04 * own.norm(), (each, float(expected[each].exp()))
