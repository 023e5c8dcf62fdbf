"""The learner: gradients, normaliser, staleness, divergence."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fakes import (
    FAMILIES,
    PROBLEMS,
    gradients,
    norm_noise,
    one_mind,
    own_attention,
    tallies_of,
    tiny_policy,
    tiny_session,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ttrl_pop.errors import DivergenceError, SamplerMismatchError, StaleRolloutError
from ttrl_pop.learn import grpo, objective
from ttrl_pop.learn.learner import Learner, average_decay, schedule_factor
from ttrl_pop.learn.micro_batches import MicroBatches, Sample
from ttrl_pop.model.logprobs import grow, token_logprobs
from ttrl_pop.model.policy import Policy
from ttrl_pop.packing.budget import learner_tokens
from ttrl_pop.packing.pack import pack
from ttrl_pop.population.base import MEAN
from ttrl_pop.run.session import Session
from ttrl_pop.types import Mind, Rollout, Tally

SLOW = [pytest.mark.slow]
LOSSES = ("grpo", "dapo", "dr_grpo", "gspo")


def without_numbers(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities that are not finite, in place of the right ones."""
    logprobs, mask = token_logprobs(*given)
    return logprobs * math.nan, mask


def all_gradients(policy_options: dict[str, Any], **settings: Any) -> dict[str, torch.Tensor]:
    session = tiny_session(
        tiny_policy(**policy_options),
        learn__max_grad_norm=1e9,
        sampling__temperature=2.0,
        sampling__stop=["a", "b", "c", "1", "2"],
        **settings,
    )
    return gradients(session, tallies_of(session))


@pytest.mark.parametrize(
    ("loss", "noise"),
    [
        pytest.param(loss, noise, marks=[] if (loss, noise) in (("dapo", "replay"), ("gspo", "mean-tis")) else SLOW)
        for loss in LOSSES
        for noise in ("replay", "mean", "mean-tis")
    ],
)
def test_micro_batches_do_not_change_the_gradient(loss: str, noise: str) -> None:
    settings = {"learn__loss": loss, "learn__noise": noise, "learn__kl": 0.1}
    whole = all_gradients({}, learn__token_budget=10**6, **settings)
    for budget in (1, 100):
        parts = all_gradients({}, learn__token_budget=budget, **settings)
        assert parts.keys() == whole.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, rtol=1e-9, atol=1e-12)


def plain_loss(session: Session, tallies: Sequence[Tally], old: dict[int, torch.Tensor]) -> torch.Tensor:
    """The objective once more, row by row and token by token, with nothing shared with the learner."""
    options, policy = session.config.learn, session.policy
    rows = [(r, reward, t) for t in tallies for r, reward in zip(t.group.rollouts_G, t.rewards_G, strict=True)]
    total = torch.zeros((), dtype=torch.float64)
    tokens = sum(len(r.completion_ids) for r, _, _ in rows)
    for index, (rollout, reward, tally) in enumerate(rows):
        ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        with own_attention(policy.network), one_mind(policy, rollout.mind, ids.shape[1]):
            logits = policy.network(input_ids=ids, use_cache=False).logits[0]
        logp = torch.log_softmax(logits / session.config.sampling.temperature, -1)
        at = torch.arange(len(rollout.prompt_ids) - 1, ids.shape[1] - 1)
        new = logp[at, ids[0, at + 1]]
        old.setdefault(index, new.detach())
        rewards = tally.rewards_G
        mean = sum(rewards) / len(rewards)
        std = math.sqrt(sum((x - mean) ** 2 for x in rewards) / len(rewards))
        advantage = (reward - mean) if options.loss == "dr_grpo" else (reward - mean) / (std + 1e-4)
        length = len(new)
        for t in range(length):
            delta = (new - old[index]).sum() / length if options.loss == "gspo" else new[t] - old[index][t]
            ratio = delta.exp()
            clipped = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
            value = -torch.minimum(ratio * advantage, clipped * advantage)
            weight = {
                "grpo": 1 / (len(rows) * length),
                "gspo": 1 / (len(rows) * length),
                "dapo": 1 / tokens,
                "dr_grpo": 1 / (len(rows) * session.config.sampling.max_new_tokens),
            }[options.loss]
            total = total + weight * value
    return total


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_the_gradient_equals_that_of_a_plain_implementation(loss: str, family: str) -> None:
    session = tiny_session(
        tiny_policy(family),
        learn__loss=loss,
        learn__max_grad_norm=1e9,
        sampling__temperature=2.5,
        sampling__stop=list("abcdefgh12345"),
    )
    tallies = tallies_of(session)
    assert len({len(r.completion_ids) for t in tallies for r in t.group.rollouts_G}) > 1
    caught = gradients(session, tallies)
    named = {**session.policy.adapter_parameters(), **session.policy.population_parameters()}
    plain = torch.autograd.grad(plain_loss(session, tallies, {}), list(named.values()))
    for name, gradient in zip(named, plain, strict=True):
        torch.testing.assert_close(caught[name], gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_mu_sigma_and_lora_pass_finite_differences(loss: str) -> None:
    # GPT-2: its LayerNorm computes in float64 throughout; the RMSNorm of other families passes through float32.
    policy = tiny_policy("gpt2", norm_noise(final_mu=True))
    session = tiny_session(policy, learn__loss=loss, learn__max_grad_norm=1e9, sampling__temperature=1.5)
    tallies = tallies_of(session, problems=PROBLEMS[:2])
    caught = gradients(session, tallies)
    named = {**session.policy.adapter_parameters(), **session.policy.population_parameters()}
    old: dict[int, torch.Tensor] = {}
    step = 1e-5
    with torch.no_grad():
        plain_loss(session, tallies, old)
        torch.manual_seed(0)
        for name, parameter in named.items():
            direction = torch.randn_like(parameter)
            parameter.add_(step * direction)
            above = plain_loss(session, tallies, old)
            parameter.sub_(2 * step * direction)
            below = plain_loss(session, tallies, old)
            parameter.add_(step * direction)
            slope = float(above - below) / (2 * step)
            assert float((caught[name] * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-9), name
    assert {"mu", "log_sigma"} < set(named)
    assert all(float(caught[name].abs().max()) > 1e-8 for name in named)


def test_only_replay_moves_sigma() -> None:
    for noise, moves in (("replay", True), ("mean", False), ("mean-tis", False)):
        caught = all_gradients({}, learn__noise=noise)
        assert bool(caught["log_sigma"].any()) == moves
        assert caught["mu"].any()


def test_the_kl_to_the_prior_holds_the_population_open() -> None:
    policy = tiny_policy(population=norm_noise(final_mu=True), warm=False)
    session = tiny_session(policy, learn__kl_prior=2.0, learn__max_grad_norm=1e9)
    with torch.no_grad():
        session.policy.population.mu.fill_(0.06)
        session.policy.population.log_sigma.sub_(0.5)
    tallies = tallies_of(session)
    with_prior = gradients(session, tallies)
    session_without = dataclasses.replace(
        session,
        config=session.config.model_copy(update={"learn": session.config.learn.model_copy(update={"kl_prior": 0})}),
    )
    without = gradients(session_without, tallies)
    # d/dmu of mean KL = mu / sigma0² / (S·D); d/dlog sigma (one per site) = (sigma²/sigma0² − 1) / S
    mu = (with_prior["mu"] - without["mu"]) / 2.0
    torch.testing.assert_close(mu, torch.full_like(mu, 0.06 / 0.09 / mu.numel()))
    log_sigma = (with_prior["log_sigma"] - without["log_sigma"]) / 2.0
    torch.testing.assert_close(log_sigma, torch.full_like(log_sigma, (math.exp(-1) - 1) / len(log_sigma)))


def test_skipped_groups_change_no_gradient_and_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    session = tiny_session(tiny_policy(), learn__max_grad_norm=1e9)
    tallies = tallies_of(session)
    flat = [dataclasses.replace(t, rewards_G=(1.0,) * len(t.rewards_G)) if i < 3 else t for i, t in enumerate(tallies)]
    seen: list[Rollout] = []
    monkeypatch.setattr(
        "ttrl_pop.learn.objective.token_logprobs", lambda p, r, *a: seen.extend(r) or token_logprobs(p, r, *a)
    )
    skipping = gradients(session, flat)
    assert len(seen) == sum(len(t.rewards_G) for t in flat[3:])
    monkeypatch.setattr(grpo, "has_signal", lambda rewards: True)
    keeping = gradients(session, flat)
    for name, gradient in keeping.items():
        torch.testing.assert_close(skipping[name], gradient, rtol=1e-9, atol=1e-12)


def test_no_signal_at_all_is_no_update() -> None:
    session = tiny_session(tiny_policy())
    tallies = [dataclasses.replace(t, rewards_G=(0.0,) * len(t.rewards_G)) for t in tallies_of(session)]
    update = Learner(session.policy, session.config).learn(tallies, 1)
    assert (update.updates, update.groups_used, update.groups_skipped) == (0, 0, len(PROBLEMS))
    assert update.loss is None
    assert session.policy.version == 0


def test_a_group_whose_labellers_abstained_learns_from_rewards_that_need_no_label() -> None:
    session = tiny_session(tiny_policy())
    (tally,) = tallies_of(session, problems=PROBLEMS[1:2])
    assert tally.clusters
    unlabelled = dataclasses.replace(tally, label=None, label_cluster=None)
    learner = Learner(session.policy, session.config)
    assert learner.learn([unlabelled], 1).groups_used == 1
    silent = dataclasses.replace(
        tally,
        group=dataclasses.replace(
            tally.group,
            rollouts_G=tuple(dataclasses.replace(r, policy_version=1) for r in tally.group.rollouts_G),
        ),
        answers_G=(None,) * len(tally.answers_G),
        clusters=(),
        label=None,
        label_cluster=None,
    )
    assert learner.learn([silent], 2).groups_used == 0, "nobody answered: there is nothing to learn"


def test_truncated_rollouts_are_masked_unless_asked_for() -> None:
    session = tiny_session(tiny_policy(), sampling__temperature=3.0, sampling__stop=list("abcdefgh12345"))
    tallies = tallies_of(session)
    rollouts = [r for t in tallies for r in t.group.rollouts_G]
    finished = sum(len(r.completion_ids) for r in rollouts if r.finish_reason == "stop")
    everything = sum(len(r.completion_ids) for r in rollouts)
    assert 0 < finished < everything
    for mask, expected in ((True, finished), (False, everything)):
        learn = session.config.learn.model_copy(update={"mask_truncated": mask})
        session.policy.version = 0
        update = Learner(session.policy, session.config.model_copy(update={"learn": learn})).learn(tallies, 1)
        assert update.tokens == expected


def test_replay_closes_the_gap_to_the_sampler_and_the_mean_does_not() -> None:
    for noise, closed in (("replay", True), ("mean", False)):
        session = tiny_session(tiny_policy(), learn__noise=noise, learn__updates_per_step=2)
        update = Learner(session.policy, session.config).learn(tallies_of(session), 1)
        assert update.logprob_gap_max is not None
        assert (update.logprob_gap_max < 1e-9) == closed
        assert update.logprob_gap is not None
        assert (update.logprob_gap < 1e-9) == closed
        assert update.updates == 2
        assert session.policy.version == 2


def test_the_mean_gap_does_not_depend_on_the_number_of_updates() -> None:
    gaps = []
    for updates in (1, 4):
        session = tiny_session(tiny_policy(), learn__noise="mean", learn__updates_per_step=updates)
        gaps.append(Learner(session.policy, session.config).learn(tallies_of(session), 1).logprob_gap)
    assert gaps[0] == pytest.approx(gaps[1], rel=1e-12)


def test_the_base_model_reads_rollouts_once_for_all_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    own, backward = objective.base_logprobs, Learner._backward

    def learned(forgets: bool) -> tuple[int, int, list[torch.Tensor]]:
        read = []

        def noted(policy: Policy, batch: list[Sample], temperature: float) -> list[torch.Tensor]:
            read.extend(batch)
            return own(policy, batch, temperature)

        def forgetful(learner: Learner, batch: list[Sample]) -> objective.Sums:
            found = backward(learner, batch)
            for each in batch if forgets else ():
                each.base = None
            return found

        monkeypatch.setattr("ttrl_pop.learn.learner.base_logprobs", noted)
        monkeypatch.setattr(Learner, "_backward", forgetful)
        session = tiny_session(tiny_policy(), learn__updates_per_step=3, learn__kl=0.1, learn__token_budget=120)
        tallies, learner = tallies_of(session), Learner(session.policy, session.config)
        learner.learn(tallies, 1)
        rollouts = sum(len(tally.group.rollouts_G) for tally in tallies)
        return len(read), rollouts, [parameter.detach() for parameter in learner.trained.adapter.values()]

    (read, rollouts, kept), (again, _, forgotten) = learned(False), learned(True)
    assert (read, again) == (rollouts, 3 * rollouts)
    torch.testing.assert_close(kept, forgotten, rtol=0, atol=0)


def test_a_prior_without_spread_adds_nothing() -> None:
    session = tiny_session(tiny_policy(population=norm_noise(0.0)), learn__kl_prior=0.1)
    assert Learner(session.policy, session.config).learn(tallies_of(session), 1).updates == 1


def test_a_group_that_is_masked_whole_is_not_counted_as_used() -> None:
    session = tiny_session(tiny_policy(), learn__mask_truncated=True)
    tallies = tallies_of(session)
    cut = [
        dataclasses.replace(
            t,
            group=dataclasses.replace(
                t.group,
                rollouts_G=tuple(dataclasses.replace(r, finish_reason="length") for r in t.group.rollouts_G),
            ),
        )
        for t in tallies
    ]
    update = Learner(session.policy, session.config).learn(cut, 1)
    assert (update.groups_used, update.groups_skipped, update.updates) == (0, len(cut), 0)


def test_several_updates_keep_the_first_log_probabilities() -> None:
    session = tiny_session(tiny_policy(), learn__updates_per_step=4, learn__lr=0.3, learn__max_grad_norm=1e9)
    update = Learner(session.policy, session.config).learn(tallies_of(session), 1)
    assert update.clip_share is not None
    assert update.clip_share > 0, "later updates must see ratios away from 1"


def test_an_update_raises_the_objective() -> None:
    session = tiny_session(tiny_policy(), learn__lr=1e-3)
    tallies = tallies_of(session)
    old: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        before = plain_loss(session, tallies, old)
    Learner(session.policy, session.config).learn(tallies, 1)
    with torch.no_grad():
        assert plain_loss(session, tallies, old) < before


def test_stale_rollouts_are_refused() -> None:
    session = tiny_session(tiny_policy())
    learner = Learner(session.policy, session.config)
    tallies = tallies_of(session)
    learner.learn(tallies, 1)
    with pytest.raises(StaleRolloutError, match=r"version 0.* version 1"):
        learner.learn(tallies, 2)


def test_a_bad_gradient_skips_the_update_and_three_in_a_row_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    session = tiny_session(tiny_policy())
    policy = session.policy
    learner = Learner(policy, session.config)
    tallies = tallies_of(session)
    before = {name: p.detach().clone() for name, p in learner.trained.by_name.items()}
    monkeypatch.setattr("ttrl_pop.learn.objective.token_logprobs", without_numbers)
    for bad in (1, 2):
        update = learner.learn(tallies, bad)
        assert (update.updates, update.bad_updates) == (0, 1)
        assert update.loss is update.kl is update.logprob_gap is update.logprob_gap_max is None
        assert update.tokens == 0
    with pytest.raises(DivergenceError, match="3 updates in a row"):
        learner.learn(tallies, 3)
    for name, parameter in learner.trained.by_name.items():
        assert torch.equal(parameter, before[name])
    monkeypatch.undo()
    assert learner.learn(tallies, 4).updates == 1
    assert learner.bad_in_a_row == 0


def test_a_bad_later_update_leaves_what_ratios_are_measured_by(monkeypatch: pytest.MonkeyPatch) -> None:
    session = tiny_session(tiny_policy())
    learner = Learner(session.policy, session.config)
    samples, _, _ = learner._samples(tallies_of(session), {}, {})
    first = learner._update(samples)
    assert first is not None
    olds = [sample.old for sample in samples]
    monkeypatch.setattr("ttrl_pop.learn.objective.token_logprobs", without_numbers)
    assert learner._update(samples) is None
    assert all(sample.old is old for sample, old in zip(samples, olds, strict=True))
    monkeypatch.undo()
    again = learner._update(samples)
    assert again is not None
    assert first.gap_tokens > again.gap_tokens == 0, "the sampler is compared with the policy that sampled"


def test_the_weight_of_a_problem_scales_its_part_of_the_gradient() -> None:
    def weighted(weights: dict[str, float]) -> dict[str, torch.Tensor]:
        session = tiny_session(tiny_policy(), learn__max_grad_norm=1e9)
        return gradients(session, tallies_of(session), weights)

    whole, half = weighted({}), weighted({p.id: 0.5 for p in PROBLEMS})
    without = {p.id: weighted({p.id: 0.0}) for p in PROBLEMS[:2]}
    neither = weighted({p.id: 0.0 for p in PROBLEMS[:2]})
    for name, gradient in whole.items():
        torch.testing.assert_close(half[name], gradient / 2, rtol=1e-9, atol=1e-14)
        # The gradient is a sum over problems, and a skipped one stays in the normaliser.
        parts = gradient - without["p0"][name] + gradient - without["p1"][name]
        torch.testing.assert_close(gradient - neither[name], parts, rtol=1e-7, atol=1e-12)
    assert any(not torch.equal(gradient, neither[name]) for name, gradient in whole.items())


def test_the_average_follows_the_policy_and_survives_a_round_trip() -> None:
    session = tiny_session(
        tiny_policy(), vote__labels="average", vote__average_decay=0.75, vote__average_decay_end=0.75
    )
    learner = Learner(session.policy, session.config)
    mu = session.policy.population.mu
    values = [mu.detach().clone()]
    for step in (1, 2):
        learner.learn(tallies_of(session, step), step)
        values.append(mu.detach().clone())
    expected = 0.75 * (0.75 * values[0] + 0.25 * values[1]) + 0.25 * values[2]
    with learner.trained.averaged():
        torch.testing.assert_close(mu.detach(), expected)
    assert torch.equal(mu, values[2])
    state = {name: value.clone() for name, value in learner.state_tensors().items()}
    other = Learner(session.policy, session.config)
    other.load_state_tensors(state)
    with other.trained.averaged():
        torch.testing.assert_close(mu.detach(), expected)


def test_population_and_adapter_have_their_own_rates_and_clips() -> None:
    session = tiny_session(tiny_policy(), learn__lr=1e-3, learn__population_lr=0.0)
    learner = Learner(session.policy, session.config)
    mu = session.policy.population.mu.detach().clone()
    update = learner.learn(tallies_of(session), 1)
    assert torch.equal(session.policy.population.mu, mu)
    assert (update.lr, update.population_lr) == (1e-3, 0.0)
    assert Learner(session.policy, tiny_session(learn__lr=1e-3).config).base_lrs == [1e-3, 5e-3]


def test_schedules() -> None:
    assert [schedule_factor(s, 4, 0, "constant") for s in (1, 4)] == [1, 1]
    assert [schedule_factor(s, 10, 2, "constant") for s in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [schedule_factor(s, 4, 0, "linear") for s in (1, 2, 3, 4)] == pytest.approx([1, 0.75, 0.5, 0.25])
    assert [schedule_factor(s, 2, 0, "cosine") for s in (1, 2)] == pytest.approx([1, 0.5])
    assert schedule_factor(1, 1, 5, "cosine") == pytest.approx(1 / 6)


def test_micro_batches_keep_the_budget_and_every_row() -> None:
    session = tiny_session(tiny_policy(), population__samples_per_mind=3)
    learner = Learner(session.policy, session.config)
    samples, _, _ = learner._samples(tallies_of(session), {}, {})
    for budget in (1, 80, 10**6):
        batches = list(MicroBatches(learner._reader, budget).cut(samples))
        assert sorted(map(id, samples)) == sorted(id(s) for batch in batches for s in batch)
        sizes = [tree_tokens(session, batch) for batch in batches]
        assert all(size <= budget or len(batch) == 1 for size, batch in zip(sizes, batches, strict=True))
        assert max(sizes) > 0.7 * budget or budget == 10**6
    assert len(batches) == 1


def tree_tokens(session: Session, batch: Sequence[Sample]) -> int:
    rollouts = [sample.rollout for sample in batch]
    trees = grow(rollouts, [r.mind for r in rollouts], session.policy.population).trees
    return len(pack(trees, session.policy.device).ids_N)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), family=st.sampled_from(["llama", "gemma3", "gpt2"]))
def test_packed_gradients_are_those_of_rollouts_one_by_one(data: st.DataObject, family: str) -> None:
    policy = POLICIES[family]
    token = st.integers(3, 60)
    prompts = data.draw(st.lists(st.lists(token, min_size=1, max_size=12), min_size=1, max_size=3))
    rollouts = [
        rollout_of(prompt, data.draw(st.lists(token, min_size=1, max_size=9)), mind)
        for prompt in prompts
        for mind in data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=3))
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    parameters = [*policy.adapter_parameters().values(), *policy.population_parameters().values()]

    def slopes(parts: list[list[Rollout]]) -> list[torch.Tensor]:
        total = torch.zeros((), dtype=torch.float64)
        for part in parts:
            logprobs, mask = token_logprobs(policy, part, [r.mind for r in part], 1.3)
            # Another weight for each token, told by what it is: a value in the wrong place would be seen.
            for row, kept, rollout in zip(logprobs, mask, part, strict=True):
                total = total + (row[kept] * torch.tensor(rollout.completion_ids).sin()).sum()
        return list(torch.autograd.grad(total, parameters, allow_unused=True))

    for packed, alone in zip(slopes([rollouts]), slopes([[r] for r in rollouts]), strict=True):
        torch.testing.assert_close(packed, alone, rtol=1e-10, atol=1e-10)


POLICIES = {family: tiny_policy(family) for family in ("llama", "gemma3", "gpt2")}


def rollout_of(prompt: Sequence[int], completion: Sequence[int], seed: int) -> Rollout:
    return Rollout(Mind(seed), tuple(prompt), tuple(completion), (0.0,) * len(completion), "", "stop", 0)


def test_micro_batches_that_do_not_fit_are_halved_for_good_and_change_no_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = tiny_session(tiny_policy(), learn__max_grad_norm=1e9, learn__kl=0.1)
    tallies = tallies_of(session)
    whole = gradients(session, tallies)
    sizes: list[int] = []

    def small_only(policy: Policy, rollouts: Sequence[Rollout], *rest: Any) -> Any:
        sizes.append(len(rollouts))
        found = token_logprobs(policy, rollouts, *rest)
        if len(rollouts) > 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return found

    monkeypatch.setattr("ttrl_pop.learn.objective.token_logprobs", small_only)
    halved = gradients(session, tallies)
    assert sizes[0] > 5
    # What did not fit once is not tried again.
    sizes.clear()
    learner = Learner(session.policy, session.config)
    whole_budget = learner.token_budget
    assert learner.learn(tallies, 1).token_budget == learner.token_budget < whole_budget
    assert max(sizes) > 5
    sizes.clear()
    session.policy.version = 0
    learner.learn(tallies, 2)
    assert max(sizes) <= 5
    for name, gradient in whole.items():
        torch.testing.assert_close(halved[name], gradient, rtol=1e-9, atol=1e-12)


def test_a_learner_goes_on_with_the_token_budget_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    session = tiny_session(tiny_policy())
    learner, sizes = Learner(session.policy, session.config), []
    assert learner.token_budget == learner_tokens(None, session.policy.device, session.policy.network)
    learner.token_budget = 1
    monkeypatch.setattr(Learner, "_backward", lambda learner, batch: sizes.append(len(batch)) or objective.Sums())
    assert learner.learn(tallies_of(session), 1).token_budget == 1
    assert set(sizes) == {1}


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_computed_again_give_the_same_gradient_and_are_not_kept(family: str) -> None:
    found, kept = [], []
    for checkpointing in (False, True):
        session = tiny_session(
            tiny_policy(family), learn__checkpointing=checkpointing, learn__kl=0.1, learn__max_grad_norm=1e9
        )
        tallies = tallies_of(session)
        size = [0]

        def count(tensor: torch.Tensor, size: list[int] = size) -> torch.Tensor:
            size[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            found.append(gradients(session, tallies))
        kept.append(size[0])
    assert all(torch.equal(found[1][name], gradient) for name, gradient in found[0].items())
    assert found[0]["log_sigma"].any()
    assert kept[1] < 0.6 * kept[0]


def test_another_error_than_lack_of_memory_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    session = tiny_session(tiny_policy())
    tallies = tallies_of(session)
    calls: list[int] = []

    def broken(policy: Policy, rollouts: Sequence[Rollout], *_: Any) -> Any:
        calls.append(len(rollouts))
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("ttrl_pop.learn.objective.token_logprobs", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        gradients(session, tallies)
    assert len(calls) == 1


def test_the_optimizer_state_survives_a_round_trip() -> None:
    session = tiny_session(tiny_policy())
    learner = Learner(session.policy, session.config)
    learner.learn(tallies_of(session), 1)
    state = {name: value.clone() for name, value in learner.state_tensors().items()}
    assert len(state) == 3 * len(learner.trained.by_name)
    other = Learner(session.policy, session.config)
    other.load_state_tensors(state)
    assert other.state_tensors().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in other.state_tensors().items())


def test_a_population_without_noise_learns_the_adapter_alone() -> None:
    session = tiny_session(tiny_policy(population=norm_noise(0.0)))
    update = Learner(session.policy, session.config).learn(tallies_of(session), 1)
    assert update.updates == 1
    assert session.policy.population.spawn(0, 1, 1)[0] != MEAN


@pytest.mark.parametrize(("backend", "remedy"), [("hf", "pure function of the mind's seed"), ("vllm", "--backend hf")])
def test_a_gap_beyond_the_limit_says_what_to_do(backend: str, remedy: str) -> None:
    session = tiny_session(tiny_policy(), learn__max_logprob_gap=1e-30)
    learner = Learner(session.policy, session.config.model_copy(update={"backend": backend}))
    with pytest.raises(SamplerMismatchError) as error:
        learner.learn(tallies_of(session), 1)
    assert remedy in str(error.value)
    assert ("--backend hf" in str(error.value)) == (backend != "hf")


def test_the_average_slows_down_by_a_cosine() -> None:
    decays = [average_decay(step, 20, 0.99, 0.9999) for step in range(1, 22)]
    assert decays[0] == 0.99
    assert decays[10] == pytest.approx((0.99 + 0.9999) / 2)
    assert decays[20] == 0.9999
    assert decays == sorted(decays)


def test_votes_beyond_the_trained_rollouts_cost_the_learner_nothing_and_move_labels_alone() -> None:
    votes = {"population__minds": 16, "population__samples_per_mind": 4}
    whole, part = (tiny_session(tiny_policy(), **votes, **more) for more in ({}, {"learn__rollouts": 32}))
    cast = tallies_of(whole)
    assert {len(tally.answers_G) for tally in cast} == {64}
    first = [
        dataclasses.replace(
            tally,
            group=dataclasses.replace(tally.group, rollouts_G=tally.group.rollouts_G[:32]),
            rewards_G=tally.rewards_G[:32],
        )
        for tally in cast
    ]
    few = tiny_session(tiny_policy(), **votes)
    updates = [Learner(s.policy, s.config).learn(t, 1) for s, t in ((part, cast), (few, first), (whole, cast))]
    assert updates[0] == updates[1]
    assert updates[0].tokens == sum(len(r.completion_ids) for tally in first for r in tally.group.rollouts_G)
    assert updates[0].tokens < updates[2].tokens
