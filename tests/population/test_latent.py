"""Latent minds: what a code changes of a pretrained model, and what it leaves to the bit."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import FAMILIES, logits_of, tiny_model, tiny_network, tiny_policy, tiny_session
from torch import Tensor

from ttrl_pop.config import LoraConfig
from ttrl_pop.errors import UsageError
from ttrl_pop.kernels import loops, matmul
from ttrl_pop.model.forward import recompute_layers
from ttrl_pop.model.logprobs import token_logprobs
from ttrl_pop.model.policy import Policy
from ttrl_pop.packing.attention import Plan
from ttrl_pop.packing.pack import Tree, pack
from ttrl_pop.population.base import MEAN
from ttrl_pop.population.latent import MIDDLE, PLACES, Latent
from ttrl_pop.population.options import LatentOptions
from ttrl_pop.types import Mind

IDS = torch.arange(3, 3 + 36).reshape(4, 9)
MINDS = [Mind(11), Mind(12), Mind(11), MEAN]
KNOWN = {11: [[1.0, 1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0]], 12: [[-1.0, 1.0, -1.0, -1.0, 1.0, -1.0, -1.0, -1.0]]}


def latent(size: float = 0.5, **options: Any) -> Latent:
    """A population that is fitted once it is attached, with directions of this size."""

    class Fitted(Latent):
        def attach(self, network: Any) -> None:
            super().attach(network)
            drawn = torch.randn(self.directions.shape, generator=torch.Generator().manual_seed(3))
            self.set_fit(drawn.to(self.directions) * size, 1.0, 0.5)

    return Fitted(LatentOptions(**options))


def policy_of(family: str = "llama", dtype: torch.dtype = torch.float64, **options: Any) -> Policy:
    return tiny_policy(family, latent(**options), dtype=dtype)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_mean_mind_and_codes_of_no_size_are_the_base_model_to_the_bit(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Products by another library than the model's own round in another way.
    monkeypatch.setattr(matmul, "_kind", lambda: None)
    with torch.no_grad():
        policy, silent = policy_of(family, dtype), policy_of(family, dtype, size=0.0)
        base = logits_of(policy, IDS, None)
        assert torch.equal(logits_of(policy, IDS, MINDS)[3], base[3])
        assert torch.equal(logits_of(silent, IDS, MINDS), base)
        assert not torch.equal(logits_of(policy, IDS, MINDS)[0], base[0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_a_row_in_a_batch_of_minds_equals_that_row_alone(family: str, level: str) -> None:
    policy = policy_of(family, level=level)
    together = logits_of(policy, IDS, MINDS)
    for row, mind in enumerate(MINDS):
        alone = logits_of(policy, IDS[row : row + 1], [mind])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=4)])
def test_minds_differ_by_seed_alone_with_and_without_an_adapter(lora: LoraConfig | None) -> None:
    policy = tiny_policy(population=latent(), lora=lora)
    logits = logits_of(policy, IDS[:1].expand(4, -1), MINDS)
    torch.testing.assert_close(logits[0], logits[2], rtol=0, atol=1e-12)
    assert (logits[0] - logits[1]).abs().max() > 0.1
    assert (logits[0] - logits[3]).abs().max() > 0.1


def test_a_network_without_its_list_of_layers_is_refused_in_one_line() -> None:
    network = tiny_network("llama")
    network.config.num_hidden_layers = 3
    with pytest.raises(UsageError, match="one list of the 3 layers") as error:
        Latent(LatentOptions()).attach(network)
    assert "\n" not in str(error.value)


class Spy(Plan):
    """A plan that notes what every layer attends with."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.seen: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def attend(
        self, layer: int, queries_NHD: Tensor, keys_NKD: Tensor, values_NKD: Tensor, scale: float, window: int | None
    ) -> Tensor:
        self.seen[layer] = queries_NHD.clone(), keys_NKD.clone(), values_NKD.clone()
        return self.plan.attend(layer, queries_NHD, keys_NKD, values_NKD, scale, window)


@torch.no_grad()
def attended(policy: Policy, mind: Mind | None) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    packed = pack([Tree(tuple(IDS[0].tolist()), mind)], policy.device)
    spy = Spy(packed.plan)
    policy.hidden(replace(packed, plan=spy))
    return spy.seen


@pytest.mark.parametrize("family", FAMILIES)
def test_codes_reach_what_the_middle_layer_reads_and_nothing_below(family: str) -> None:
    """Gemma's layer there attends to all, Mistral's through a sliding window."""
    policy = policy_of(family)
    split = policy.population.split
    assert split == 1
    base, one, other = (attended(policy, mind) for mind in (None, Mind(11), Mind(12)))
    for layer in range(split):
        for found in (one, other):
            assert all(torch.equal(a, b) for a, b in zip(base[layer], found[layer], strict=True))
    for part in range(3):
        assert (one[split][part] - other[split][part]).abs().max() > 0.1
        assert (one[split][part] - base[split][part]).abs().max() > 0.1


def test_the_middle_layer_and_the_last_norm_read_the_sum_of_states_and_injection() -> None:
    """Against the same layers asked by hand, without an adapter."""
    policy = tiny_policy(population=latent(), lora=None)
    network, mind = policy.network, Mind(11)
    plain = tiny_network(dtype=torch.float64).model
    with torch.no_grad():
        packed = pack([Tree(tuple(IDS[0].tolist()), mind)], policy.device)
        found = policy.hidden(packed)
        ids = IDS[:1]
        positions = torch.arange(ids.shape[1])[None]
        turns = plain.rotary_emb(plain.embed_tokens(ids), positions)
        mask = torch.full((1, 1, 9, 9), -torch.inf, dtype=torch.float64).triu(1)
        states = plain.layers[0](plain.embed_tokens(ids), attention_mask=mask, position_embeddings=turns)
        code = torch.from_numpy(policy.population.code(mind)).double()
        middle, end = (code @ policy.population.directions[:, place] for place in PLACES)
        states = plain.layers[1](states + middle, attention_mask=mask, position_embeddings=turns) + end
    assert len(network.model.layers) == 2
    # Norms of transformers pass through float32.
    torch.testing.assert_close(found, plain.norm(states)[0].detach(), rtol=0, atol=1e-5)


def injected(policy: Policy, states: Tensor, minds: tuple[Mind, ...], owner: Tensor, positions: Tensor) -> Tensor:
    """What the middle layer reads in place of these states."""
    layer = policy.network.model.layers[1]
    seen: list[Tensor] = []
    hook = layer.input_layernorm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    layer.forward = lambda hidden_states, **_: layer.input_layernorm(hidden_states)
    with torch.no_grad(), policy.population.embody(minds, owner, positions):
        layer(states)
    hook.remove()
    return seen[0]


def test_narrow_numbers_are_added_to_in_wider_ones() -> None:
    """Rounded before it is added, an offset that reaches the next number of bf16 would not always reach it."""
    policy = policy_of("llama", torch.bfloat16)
    states = torch.full((1, 1, 16), 100.0, dtype=torch.bfloat16)
    offset = 0.2505
    big = torch.zeros_like(policy.population.directions)
    big[0] = offset
    policy.population.set_fit(big, 1.0, 0.5)
    sign = float(policy.population.code(Mind(11))[0, 0])
    assert sign == 1
    assert policy.population.directions.dtype == torch.float32
    read = injected(policy, states, (Mind(11),), torch.zeros(1, dtype=torch.long), torch.arange(1))
    # Numbers of bf16 near 100 are a half apart, and 0.2505 is 0.25 there: half of the way, which rounds back.
    assert torch.equal(states + torch.tensor(offset).bfloat16(), states)
    assert torch.equal(read, torch.full_like(states, 100.5))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_the_sampler_and_the_learner_read_a_rollout_alike(family: str, level: str) -> None:
    session = tiny_session(policy_of(family, level=level))
    minds = session.policy.population.spawn(0, 1, 3)
    for group in session.sample(session.problems, minds, 2, 1):
        rollouts = group.rollouts_G
        with torch.no_grad():
            found_GT, mask_GT = token_logprobs(session.policy, rollouts, [r.mind for r in rollouts], 1.0)
        for rollout, row_T, mask_T in zip(rollouts, found_GT, mask_GT, strict=True):
            expected = torch.tensor(rollout.logprobs, dtype=torch.float64)
            torch.testing.assert_close(row_T[mask_T], expected, rtol=0, atol=1e-10)


@contextmanager
def _stay() -> Iterator[ExitStack]:
    with ExitStack() as stay:
        yield stay


def test_the_gradient_of_the_directions_is_that_of_finite_differences_and_of_recomputed_layers() -> None:
    session = tiny_session(policy_of())
    policy, population = session.policy, session.policy.population
    (group,) = session.sample(session.problems[:1], population.spawn(0, 1, 3), 2, 1)
    minds = [rollout.mind for rollout in group.rollouts_G]

    def total(stay: ExitStack | None = None) -> Tensor:
        return token_logprobs(policy, group.rollouts_G, minds, 1.0, stay)[0].sum()

    (gradient,) = torch.autograd.grad(total(), population.directions)
    along = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(5)).double()
    sums = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            population.directions.add_(step * along)
            sums.append(float(total()))
        population.directions.add_(1e-6 * along)
    assert float((gradient * along).sum()) == pytest.approx((sums[0] - sums[1]) / 2e-6, rel=1e-6)
    recompute_layers(policy.network)
    with _stay() as stay:
        again = torch.autograd.grad(total(stay), population.directions)[0]
    torch.testing.assert_close(again, gradient, rtol=0, atol=1e-12)


def test_a_change_of_the_directions_is_seen_by_minds_that_were_embodied_before() -> None:
    policy, fresh = policy_of(), policy_of()
    with torch.no_grad():
        logits_of(policy, IDS, MINDS)
        for each in (policy, fresh):
            each.population.directions.mul_(1.5)
        assert torch.equal(logits_of(policy, IDS, MINDS), logits_of(fresh, IDS, MINDS))
        policy.population.restart()
        assert torch.equal(logits_of(policy, IDS, MINDS), logits_of(policy_of(), IDS, MINDS))


def test_codes_of_known_seeds_are_known() -> None:
    """Saved runs name minds by their seeds."""
    population = Latent(LatentOptions())
    assert population.code(Mind(11)).tolist() == KNOWN[11]
    assert population.code(Mind(12)).tolist() == KNOWN[12]
    assert not population.code(MEAN).any()
    longer = population.code(Mind(11), 5)
    assert longer[:1].tolist() == KNOWN[11]
    assert len({row.tobytes() for row in longer}) > 1
    assert abs(float(sum(population.code(Mind(seed)).mean() for seed in range(1, 400))) / 399) < 0.05


def test_no_two_minds_of_a_step_have_one_code_until_codes_run_out() -> None:
    population = Latent(LatentOptions(bits=4))
    minds = population.spawn(0, 1, 40)
    codes = [population.code(mind).tobytes() for mind in minds]
    assert len(set(minds)) == 40
    assert len(set(codes[:16])) == len(set(codes[16:32])) == 16
    assert population.spawn(0, 1, 40) == minds
    assert population.spawn(0, 1, 7) == minds[:7], "fewer minds are the first of them"
    assert population.spawn(0, 2, 40) != minds
    assert len(set(Latent(LatentOptions(level="token")).spawn(0, 1, 300))) == 300


def test_layers_that_read_more_than_one_row_are_refused_in_one_line() -> None:
    """As those of Gemma 3n, which read four streams."""
    policy = policy_of()
    owner = torch.zeros(9, dtype=torch.long)
    with pytest.raises(UsageError, match=r"reads \(4, 1, 9, 16\)") as error:
        injected(policy, torch.zeros(4, 1, 9, 16).double(), (Mind(11),), owner, torch.arange(9))
    assert "\n" not in str(error.value)


def test_codes_of_every_token_are_those_of_seed_and_position() -> None:
    policy = policy_of(level="token")
    population = policy.population
    positions = torch.tensor([0, 1, 2, 7, 8])
    owner = torch.tensor([0, 0, 0, 1, 1])
    minds = (Mind(11), Mind(12))
    x = torch.randn(1, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    codes = torch.stack(
        [
            torch.from_numpy(population.code(minds[m], 9)[p])
            for m, p in zip(owner.tolist(), positions.tolist(), strict=True)
        ]
    )
    with torch.no_grad():
        expected = x + codes.double() @ population.directions[:, MIDDLE]
    torch.testing.assert_close(injected(policy, x, minds, owner, positions), expected, rtol=0, atol=1e-12)


def test_minds_cannot_be_embodied_before_the_fit() -> None:
    policy = Policy(tiny_model(), Latent(LatentOptions()))
    assert policy.population.lacks == "fit"
    with pytest.raises(UsageError, match="has not been fitted"):
        logits_of(policy, IDS, MINDS)
    policy.population.set_fit(torch.ones(8, 2, 16), 2.0, 0.5)
    assert policy.population.lacks is None
    figures = policy.population.metrics()
    # Eight signs of length one each, in every dimension: root of 8, against hidden states of 2.
    assert figures["population/reach"] == pytest.approx(8**0.5 / 2)
    assert figures["population/gap_bits"] == 0.5


def test_reach_is_the_size_of_what_codes_add() -> None:
    policy = policy_of(bits=4)
    population = policy.population
    codes = torch.stack([torch.from_numpy(population.code(mind)[0]) for mind in population.spawn(0, 0, 16)])
    added = codes.double() @ population.directions[:, MIDDLE]
    assert population.metrics()["population/reach"] == pytest.approx(float(added.detach().square().mean().sqrt()))


def test_outside_of_embody_the_model_is_as_transformers_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "_kind", lambda: None)
    monkeypatch.setattr(loops, "_kernels", lambda: None)
    policy = policy_of("qwen2", torch.float32)
    with torch.no_grad():
        plain = tiny_network("qwen2", dtype=torch.float32)(input_ids=IDS, use_cache=False).logits
        logits_of(policy, IDS, MINDS)
        with policy.as_base():
            assert torch.equal(logits_of(policy, IDS, None), plain)
