"""`ttrl_pop.population`: rows of padded batches in minds of their own, for whoever samples and trains."""

import copy
import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from fakes import (
    FAMILIES,
    gradients,
    logits_of,
    tallies_of,
    tiny_network,
    tiny_policy,
    tiny_session,
)

import ttrl_pop
from ttrl_pop import MEAN, Mind, Minds
from ttrl_pop.api.population import SETTINGS, WEIGHTS, positions
from ttrl_pop.errors import UsageError
from ttrl_pop.export.trained import NoFormError
from ttrl_pop.types import Tally

PROMPTS = [[5, 6, 7, 8, 9], [9, 10], [5, 6, 7, 8, 9], [11, 12, 13]]
ROWS = [Mind(11), Mind(12), Mind(12), MEAN]
ROUNDING = {family: 1e-12 if family == "gpt2" else 2e-5 for family in FAMILIES}
"""Norms of other families than GPT-2 pass through float32 in transformers."""
IDS = torch.arange(3, 3 + 4 * 7).reshape(4, 7)


def minds_of(family: str = "llama", **options: Any) -> Minds:
    """A population away from where it begins, on a tiny model in float64."""
    minds = ttrl_pop.population(tiny_network(family), **{"sigma": 0.3, **options})
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        minds.population.mu.add_(torch.randn_like(minds.population.mu) * 0.1)
    return minds


def padded(prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    rows = [[1] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    masks = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}


def written(model: Any, prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], torch.Tensor]:
    """Greedy completions, and the logits [B, K, V] that they were taken from."""
    batch = padded(prompts)
    out = model.generate(
        **batch,
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences[:, batch["input_ids"].shape[1] :].tolist(), torch.stack(out.logits, dim=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_left_padded_batch_are_each_row_alone(family: str) -> None:
    minds = minds_of(family)
    base_ids, base = written(minds.model, PROMPTS)
    with minds.embody(ROWS):
        ids, together = written(minds.model, PROMPTS)
    for row, (prompt, mind) in enumerate(zip(PROMPTS, ROWS, strict=True)):
        with minds.embody([mind]):
            (alone_ids,), alone = written(minds.model, [prompt])
        assert ids[row] == alone_ids
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=ROUNDING[family])
    # The same prompt in two minds, and minds beside none at all.
    assert (together[0, 0] - together[2, 0]).abs().max() > 0.01
    assert (together - base).abs().amax((1, 2)).min() > 0.01
    assert written(minds.model, PROMPTS)[0] == base_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_the_mind_that_a_run_would_read_it_by(family: str) -> None:
    policy = tiny_policy(family, lora=None)
    minds = ttrl_pop.population(tiny_network(family), sigma=0.3)
    minds.population.load_state_dict(policy.population.state_dict())
    with torch.no_grad(), minds.embody(ROWS):
        # Norms of other families than GPT-2 pass through float32 in transformers.
        torch.testing.assert_close(
            minds.model(input_ids=IDS).logits,
            logits_of(policy, IDS, ROWS),
            rtol=0,
            atol=1e-12 if family == "gpt2" else 2e-5,
        )
    assert minds.spawn(seed=3, step=2, count=4) == policy.population.spawn(3, 2, 4)


def test_parts_of_a_batch_are_the_whole() -> None:
    minds = minds_of("gpt2")
    with torch.no_grad():
        with minds.embody(ROWS):
            whole = minds.model(input_ids=IDS).logits
        with minds.embody(ROWS):
            parts = [minds.model(input_ids=IDS[rows]).logits for rows in (slice(0, 1), slice(1, 4))]
            again = minds.model(input_ids=IDS).logits
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)
    assert torch.equal(again, whole)


def test_a_part_that_is_generated_keeps_its_minds_to_the_last_token() -> None:
    minds = minds_of()
    with minds.embody(ROWS):
        whole = written(minds.model, [PROMPTS[0]] * 4)[0]
    with minds.embody(ROWS):
        parts = [written(minds.model, [PROMPTS[0]] * 2)[0] for _ in range(2)]
    assert parts[0] + parts[1] == whole
    assert len({tuple(row) for row in whole}) > 1


def test_caches_of_two_parts_may_go_on_in_turns_and_copies_of_them_too() -> None:
    minds = minds_of("gpt2")
    with torch.no_grad(), minds.embody(ROWS):
        whole = minds.model(input_ids=IDS).logits
        first, second = (minds.model(input_ids=IDS[rows, :5]) for rows in (slice(0, 2), slice(2, 4)))
        kept = copy.deepcopy(second.past_key_values)
        read = [
            minds.model(input_ids=IDS[rows, 5:], past_key_values=cache).logits
            for rows, cache in ((slice(2, 4), kept), (slice(0, 2), first.past_key_values))
        ]
    torch.testing.assert_close(torch.cat(read[::-1]), whole[:, 5:], rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_cache_is_read_on_by_nobody_else() -> None:
    minds = minds_of()
    base = minds.model(input_ids=IDS[:2, :5]).past_key_values
    with minds.embody(ROWS), pytest.raises(UsageError, match="2 rows from a cache that was filled outside of embody"):
        minds.model(input_ids=IDS[:2, 5:], past_key_values=base)
    with minds.embody(ROWS):
        four = minds.model(input_ids=IDS[:, :5]).past_key_values
        two = copy.deepcopy(four)
        two.batch_select_indices(torch.tensor([0, 1]))
        with pytest.raises(UsageError, match="2 rows from a cache that was filled by 4 rows of minds"):
            minds.model(input_ids=IDS[:2, 5:], past_key_values=two)
    with minds.embody([Mind(1)] * 4), pytest.raises(UsageError, match="embody the same minds"):
        minds.model(input_ids=IDS[:, 5:], past_key_values=four)


def test_a_row_of_several_sequences_is_refused_and_a_part_of_one_row_is_not() -> None:
    minds = minds_of()
    with minds.embody(ROWS):
        for place in ({"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2]])}, {"cu_seq_lens_q": torch.tensor([0, 4])}):
            with pytest.raises(UsageError, match="one row of several sequences, where 4 minds"):
                minds.model(input_ids=IDS[:1], **place)
        for row in range(4):
            minds.model(input_ids=IDS[row : row + 1], position_ids=torch.arange(7)[None])


def test_an_update_that_leaves_no_trace_is_seen_by_the_next_minds() -> None:
    minds = minds_of()
    read = []
    for _ in range(2):
        with torch.no_grad(), minds.embody([MEAN] * 4):
            read.append(minds.model(input_ids=IDS).logits)
        minds.population.mu.data += 1.0
    assert not torch.equal(*read)


def test_what_wraps_a_model_does_not_change_its_minds() -> None:
    plain = ttrl_pop.population(tiny_network(), sigma=0.3)
    compiled = torch.compile(tiny_network(), backend="eager")
    parallel = torch.nn.DataParallel(tiny_network())
    for wrapped in (compiled, parallel):
        assert ttrl_pop.population(wrapped, sigma=0.3).population.sites == plain.population.sites


def test_parts_give_the_gradient_of_the_whole_each_by_a_backward_pass_of_its_own() -> None:
    minds = minds_of("gpt2")
    parameters = minds.parameters()
    assert len(parameters) == 2
    with minds.embody(ROWS):
        minds.model(input_ids=IDS).logits.logsumexp(-1).sum().backward()
    whole = [parameter.grad.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    with minds.embody(ROWS):
        for start in (0, 2):
            minds.model(input_ids=IDS[start : start + 2]).logits.logsumexp(-1).sum().backward()
    for parameter, gradient in zip(parameters, whole, strict=True):
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


def plain_loss(minds: Minds, tallies: Sequence[Tally]) -> torch.Tensor:
    """GRPO's loss (`dapo`) of one batch on the policy that wrote it, as somebody else's trainer has it."""
    rollouts = [(r, t.rewards_G[g], t.rewards_G) for t in tallies for g, r in enumerate(t.group.rollouts_G)]
    batch = padded([r.prompt_ids + r.completion_ids for r, _, _ in rollouts])
    total = torch.zeros((), dtype=torch.float64)
    with minds.embody([r.mind for r, _, _ in rollouts]):
        logits = minds.model(**batch, position_ids=positions(batch["attention_mask"])).logits
    logprobs = torch.log_softmax(logits[:, :-1], -1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    for row, (rollout, reward, rewards) in enumerate(rollouts):
        values = torch.tensor(rewards, dtype=torch.float64)
        advantage = (reward - values.mean()) / (values.std(correction=0) + 1e-4)
        new = logprobs[row, -len(rollout.completion_ids) :]
        total = total - (advantage * (new - new.detach()).exp()).sum()
    return total / sum(len(r.completion_ids) for r, _, _ in rollouts)


def widen(network: Any) -> None:
    """Let norms that pass through float32 in transformers stay in the type that they are given, as the learner's do."""

    def wide(norm: Any) -> Any:
        weight = 1 + norm.weight if "Gemma" in type(norm).__name__ else norm.weight
        eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
        return lambda x: weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)

    for module in network.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = wide(module)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_learner_on_the_same_rollouts(family: str) -> None:
    session = tiny_session(tiny_policy(family, lora=None), learn__max_grad_norm=1e9)
    tallies = tallies_of(session)
    caught = gradients(session, tallies)
    network = tiny_network(family)
    widen(network)
    minds = ttrl_pop.population(network, sigma=0.3)
    minds.population.load_state_dict(session.policy.population.state_dict())
    found = torch.autograd.grad(plain_loss(minds, tallies), minds.parameters())
    for name, gradient in zip(("mu", "log_sigma"), found, strict=True):
        size = caught[name].abs().max()
        assert size > 1e-3
        torch.testing.assert_close(gradient / size, caught[name] / size, rtol=0, atol=1e-10)


def wrapped(model: Any, **settings: Any) -> Any:
    """The model with a LoRA adapter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, peft.LoraConfig(r=2, task_type="CAUSAL_LM", **settings))


@pytest.mark.parametrize("first", ["minds", "peft"])
def test_it_goes_with_peft_in_either_order_and_the_noise_is_the_same(first: str) -> None:
    network = tiny_network()
    expected = ttrl_pop.population(copy.deepcopy(network), sigma=0.3)
    if first == "peft":
        model = wrapped(network, target_modules="all-linear")
        minds = ttrl_pop.population(model, sigma=0.3)
    else:
        minds = ttrl_pop.population(network, sigma=0.3)
        model = wrapped(network, target_modules="all-linear")
    assert minds.population.sites == expected.population.sites
    with torch.no_grad(), minds.embody(ROWS), expected.embody(ROWS):
        logits = model(input_ids=IDS).logits
        # A fresh adapter is the identity.
        torch.testing.assert_close(logits, expected.model(input_ids=IDS).logits, rtol=0, atol=1e-12)
        assert written(model, PROMPTS)[0] == written(expected.model, PROMPTS)[0]


def test_rows_that_do_not_come_out_even_are_refused() -> None:
    minds = minds_of()
    with minds.embody(ROWS):
        minds.model(input_ids=IDS[:3])
        with pytest.raises(UsageError, match="a forward of 3 rows, where 1 of 4 minds are left"):
            minds.model(input_ids=IDS[:3])


def test_a_population_inside_of_another_ends_as_it_began() -> None:
    minds = minds_of()
    with torch.no_grad(), minds.embody(ROWS):
        outer = minds.model(input_ids=IDS).logits
        with minds.embody([MEAN]):
            inner = minds.model(input_ids=IDS[:1]).logits
        assert torch.equal(minds.model(input_ids=IDS).logits, outer)
    assert not torch.equal(inner, outer[:1])


def embodied(minds: Minds, given: Any) -> None:
    """Begins to embody, as it is where nothing checks types."""
    next(inspect.unwrap(Minds.embody)(minds, given))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda minds: ttrl_pop.population("gpt2"), "one of transformers that is loaded, got a str"),
        (lambda minds: ttrl_pop.population(torch.nn.Linear(2, 2)), "got a Linear"),
        (lambda minds: embodied(minds, []), r"a list of minds, one for each row, got \[\]"),
        (lambda minds: embodied(minds, Mind(1)), "a list of minds"),
        (lambda minds: embodied(minds, [1, 2]), r"got \[1, 2\]"),
        (lambda minds: minds.calibrate(IDS, torch.ones_like(IDS), count=0), "count must be at least 1, got 0"),
        (lambda minds: minds_of(decay=0.9), "decay must be 1 where nobody ends a step, got 0.9"),
    ],
)
def test_what_cannot_be_is_said(wrong: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        wrong(minds_of())


@pytest.mark.parametrize("options", [{"level": "token"}, {"scope": "completion"}])
def test_noise_that_needs_positions_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="for rows of padded batches"):
        minds_of(**options)


def test_sigma_is_found_on_prompts() -> None:
    minds = ttrl_pop.population(tiny_network(dtype=torch.float32), sigma="auto", target_kl=0.05, target_flips=0.5)
    batch = padded(PROMPTS)
    with pytest.raises(UsageError, match="calibrate first"), minds.embody(ROWS):
        minds.model(**padded(PROMPTS))
    found = minds.calibrate(batch["input_ids"], batch["attention_mask"])
    assert 0 < found.kl <= 0.05
    assert float(minds.population.log_sigma.detach().exp().mean()) == pytest.approx(found.sigma, rel=1e-5)


def test_what_is_saved_is_what_is_loaded_and_a_runs_checkpoint_loads_too(tmp_path: Path) -> None:
    minds, other = minds_of(), ttrl_pop.population(tiny_network(), sigma=0.1)
    minds.save_pretrained(tmp_path)
    other.load(tmp_path)
    with torch.no_grad(), minds.embody(ROWS), other.embody(ROWS):
        assert torch.equal(minds.model(input_ids=IDS).logits, other.model(input_ids=IDS).logits)
    with pytest.raises(UsageError, match="no population of this model"):
        ttrl_pop.population(tiny_network("gemma3"), sigma=0.1).load(tmp_path)


def test_a_load_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    minds = minds_of()
    before = {name: tensor.clone() for name, tensor in minds.population.state_dict().items()}
    minds_of(spread="dim").save_pretrained(tmp_path / "dim")
    ttrl_pop.population(tiny_network(), sigma=0.1, sites="input").save_pretrained(tmp_path / "input")
    ttrl_pop.population(tiny_network(), sigma=0.1, sites="post-attention").save_pretrained(tmp_path / "post")
    for name, cut in (("cut", 100), ("garbage", None)):
        minds.save_pretrained(tmp_path / name)
        weights = tmp_path / name / WEIGHTS
        weights.write_bytes(weights.read_bytes()[:cut] if cut else b"nothing" * 9)
    minds.save_pretrained(tmp_path / "token")
    settings = tmp_path / "token" / SETTINGS
    settings.write_text(settings.read_text().replace('"level": "sequence"', '"level": "token"'))
    minds.save_pretrained(tmp_path / "empty")
    (tmp_path / "empty" / SETTINGS).write_text("{}")
    for name, message in (
        ("dim", r"it holds log_sigma \[\d+, 16\], mu .* where this one has log_sigma \[\d+, 1\]"),
        ("input", "behind the same norms"),
        ("cut", "cannot be read"),
        ("garbage", "cannot be read"),
        ("token", "level must be 'sequence'"),
        ("empty", "cannot be read"),
    ):
        with pytest.raises(UsageError, match=message):
            minds.load(tmp_path / name)
    with pytest.raises(UsageError, match="the same norms"):
        ttrl_pop.population(tiny_network(), sigma=0.1, sites="input").load(tmp_path / "post")
    for name, tensor in minds.population.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_what_is_loaded_learns_its_spread_where_there_is_one(tmp_path: Path) -> None:
    still, wide = ttrl_pop.population(tiny_network(), sigma=0.0), minds_of()
    still.save_pretrained(tmp_path / "still")
    wide.save_pretrained(tmp_path / "wide")
    still.load(tmp_path / "wide")
    wide.load(tmp_path / "still")
    assert len(still.parameters()) == 2
    assert len(wide.parameters()) == 1


@pytest.mark.parametrize("first", ["minds", "peft"])
def test_a_folded_mind_has_its_adapter_in_whichever_came_first(first: str) -> None:
    settings = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "init_lora_weights": False}
    network: Any = tiny_network("gpt2")
    if first == "minds":
        minds = ttrl_pop.population(network, sigma=0.3)
        model = wrapped(network, **settings)
    else:
        model = wrapped(network, **settings)
        minds = ttrl_pop.population(model, sigma=0.3)
    before = model(input_ids=IDS).logits
    with torch.no_grad():
        with minds.embody([Mind(11)] * 4):
            own = model(input_ids=IDS).logits
        torch.testing.assert_close(minds.fold(Mind(11))(input_ids=IDS).logits, own, rtol=0, atol=1e-12)
        assert torch.equal(model(input_ids=IDS).logits, before)


def test_a_folded_mind_is_the_mind_and_the_model_stays_as_it_was() -> None:
    minds = minds_of("gpt2")
    before = {name: tensor.clone() for name, tensor in minds.model.state_dict().items()}
    with torch.no_grad():
        for mind in (MEAN, Mind(11)):
            with minds.embody([mind] * 4):
                own = minds.model(input_ids=IDS).logits
            plain = minds.fold(mind)
            torch.testing.assert_close(plain(input_ids=IDS).logits, own, rtol=0, atol=1e-12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in minds.model.state_dict().items())
    with pytest.raises(NoFormError, match="final_mu = false"):
        minds_of("llama").fold()
