"""Norm noise: sites, frozen per-row noise, and what the formulas promise."""

import math

import pytest
import torch
from fakes import FAMILIES, logits_of, norm_noise, tallies_of, tiny_model, tiny_network, tiny_policy, tiny_session

from ttrl_pop.config import LoraConfig
from ttrl_pop.errors import UsageError
from ttrl_pop.kernels import loops, matmul
from ttrl_pop.learn.learner import Learner
from ttrl_pop.model.policy import Policy
from ttrl_pop.population.base import MEAN, NoPopulation
from ttrl_pop.population.norm_noise import chosen_sites, final_site, norm_sites
from ttrl_pop.types import Mind

MINDS = [Mind(11), Mind(12), Mind(11), MEAN]
IDS = torch.arange(3, 3 + 4 * 9).reshape(4, 9)

SITES = {
    "llama": ["input_layernorm", "post_attention_layernorm", "norm"],
    "qwen2": ["input_layernorm", "post_attention_layernorm", "norm"],
    "qwen3": ["input_layernorm", "post_attention_layernorm", "norm"],
    "gemma3": [
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
        "norm",
    ],
    "mistral": ["input_layernorm", "post_attention_layernorm", "norm"],
    "phi3": ["input_layernorm", "post_attention_layernorm", "norm"],
    "gpt2": ["ln_1", "ln_2", "ln_f"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_are_the_norms_over_the_hidden_size(family: str) -> None:
    names = [name for name, _ in norm_sites(tiny_network(family))]
    *inner, last = SITES[family]
    assert len(names) == 2 * len(inner) + 1
    assert {name.rpartition(".")[2] for name in names} == {*inner, last}


def test_norms_of_queries_and_keys_are_no_sites_even_at_full_width() -> None:
    import transformers

    config = transformers.Olmo2Config(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4
    )
    network = transformers.AutoModelForCausalLM.from_config(config)
    wide = [m for n, m in network.named_modules() if n.endswith("q_norm")]
    assert wide[0].weight.shape == (16,)
    assert not [name for name, _ in norm_sites(network) if "q_norm" in name or "k_norm" in name]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_spread_the_logits_are_the_base_models_to_the_bit(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Products by another library than the model's own round in another way, and so do loops of ours.
    monkeypatch.setattr(matmul, "_kind", lambda: None)
    monkeypatch.setattr(loops, "_kernels", lambda: None)
    policy = Policy(tiny_model(family, dtype=dtype), norm_noise(0.0))
    with torch.no_grad():
        plain = tiny_network(family, dtype=dtype)(input_ids=IDS, use_cache=False).logits
        assert torch.equal(logits_of(policy, IDS, MINDS), plain)
        assert torch.equal(logits_of(policy, IDS, None), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_in_a_batch_of_minds_equals_that_row_alone(family: str) -> None:
    policy = tiny_policy(family)
    together = logits_of(policy, IDS, MINDS)
    for row, mind in enumerate(MINDS):
        alone = logits_of(policy, IDS[row : row + 1], [mind])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-12)


def test_minds_differ_by_seed_alone() -> None:
    policy = tiny_policy()
    same = IDS[:1].expand(4, -1)
    logits = logits_of(policy, same, MINDS)
    torch.testing.assert_close(logits[0], logits[2], rtol=0, atol=1e-12)
    assert (logits[0] - logits[1]).abs().max() > 0.1
    assert (logits[0] - logits[3]).abs().max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_adds_its_own_mu_and_scaled_noise(family: str) -> None:
    policy = tiny_policy(family)
    population = policy.population
    with torch.no_grad():
        population.log_sigma.add_(torch.linspace(-0.5, 0.5, len(population.sites))[:, None])
    for index, (_, module) in enumerate(norm_sites(policy.network)):
        x = torch.randn(1, 6, 16, dtype=torch.float64)
        plain = module(x)
        with population.embody([Mind(11), MEAN], torch.tensor([0, 0, 0, 1, 1, 1]), torch.arange(6)):
            offset = (module(x) - plain).view(2, 3, 16)
        mu, sigma = population.mu[index], population.log_sigma[index].exp()
        expected = torch.stack([mu + sigma * population.standard_noise(11)[index, 0], mu])
        torch.testing.assert_close(offset, expected[:, None, :].expand_as(offset), rtol=0, atol=1e-12)


def test_a_change_of_the_parameters_is_seen_by_minds_that_were_embodied_before() -> None:
    policy, other = tiny_policy(), tiny_policy()
    with torch.no_grad():
        logits_of(policy, IDS, MINDS)
        for change in ("mu", "log_sigma"):
            for each in (policy, other):
                getattr(each.population, change).add_(0.2)
            fresh = logits_of(other, IDS, MINDS)
            assert torch.equal(logits_of(policy, IDS, MINDS), fresh)
        state = {name: value + 0.1 for name, value in policy.population.state_dict().items()}
        policy.population.load_state_dict(state)
        other = tiny_policy()
        other.population.load_state_dict(state)
        assert torch.equal(logits_of(policy, IDS, MINDS), logits_of(other, IDS, MINDS))


def test_token_level_noise_is_that_of_seed_site_and_position() -> None:
    population = tiny_policy(population=norm_noise(level="token")).population
    network = tiny_network()
    other = norm_noise(level="token")
    other.attach(network)
    other.mu.data.copy_(population.mu.data)
    module = network.model.norm
    x = torch.randn(1, 6, 16, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2], [5, 6, 7]])
    with torch.no_grad():
        plain = module(x)
        with other.embody([Mind(11), Mind(12)], torch.tensor([0, 0, 0, 1, 1, 1]), positions.flatten()):
            offset = (module(x) - plain).view(2, 3, 16)
    sigma = other.log_sigma[-1].exp()
    for row, mind in enumerate((11, 12)):
        expected = other.mu[-1] + sigma * other.standard_noise(mind, 8)[-1, positions[row]]
        torch.testing.assert_close(offset[row], expected.detach(), rtol=0, atol=1e-12)


def test_noise_is_a_pure_function_of_seed_and_site() -> None:
    one, other = norm_noise(), norm_noise()
    one.attach(tiny_network())
    other.attach(tiny_network(seed=5))
    other.standard_noise(99)
    assert torch.equal(one.standard_noise(7), other.standard_noise(7))
    eps = torch.stack([one.standard_noise(seed)[:, 0] for seed in range(1, 300)])
    assert abs(float(eps.mean())) < 0.02
    assert abs(float(eps.std()) - 1) < 0.02
    assert abs(float((eps[:, 0] * eps[:, 1]).mean())) < 0.05, "sites must be independent"


def test_noise_of_a_known_seed_does_not_change() -> None:
    # A saved run names minds by seed: a change here orphans every rollout on disk.
    population = norm_noise()
    population.attach(tiny_network())
    expected = torch.tensor(KNOWN_NOISE, dtype=torch.float64)
    torch.testing.assert_close(population.standard_noise(12345)[0, 0, :4], expected, rtol=0, atol=1e-6)


KNOWN_NOISE = [0.6063964, 1.7772205, -1.593544, -1.8054093]


def test_the_mean_mind_has_no_noise_and_spawn_never_returns_it() -> None:
    policy = tiny_policy()
    assert not policy.population.standard_noise(MEAN.seed).any()
    minds = policy.population.spawn(0, 1, 64)
    assert len({mind.seed for mind in minds}) == 64
    assert MEAN not in minds
    assert minds[:8] == policy.population.spawn(0, 1, 8)
    assert not set(minds) & set(policy.population.spawn(0, 2, 64))


def test_outside_of_embody_the_model_is_the_base_model() -> None:
    policy = tiny_policy()
    plain = tiny_network()(input_ids=IDS, use_cache=False).logits
    with policy.as_base():
        # transformers' RMSNorm passes through float32, ours stays in float64.
        torch.testing.assert_close(logits_of(policy, IDS, None), plain, rtol=0, atol=1e-4)
        assert torch.equal(logits_of(policy, IDS, None), logits_of(tiny_policy(lora=None), IDS, None))
        assert not torch.equal(logits_of(policy, IDS, [MEAN] * 4), plain), "mu moves the mean mind"


def test_token_level_noise_differs_between_tokens_and_not_by_what_else_is_packed() -> None:
    policy = tiny_policy(population=norm_noise(level="token"))
    alone = logits_of(policy, IDS[:1], [Mind(5)])
    beside = logits_of(policy, IDS, [Mind(5), Mind(6), Mind(7), MEAN])
    torch.testing.assert_close(beside[:1], alone, rtol=0, atol=1e-12)
    population = policy.population
    assert torch.equal(population.standard_noise(5, 4), population.standard_noise(5, 9)[:, :4])
    assert not torch.equal(population.standard_noise(5, 4)[:, 0], population.standard_noise(5, 4)[:, 1])


def test_parameters_follow_the_spread() -> None:
    for spread, width in (("site", 1), ("dim", 16)):
        population = norm_noise(0.02, spread=spread)
        population.attach(tiny_network())
        assert population.mu.shape == (5, 16)
        assert population.log_sigma.shape == (5, width)
        assert population.metrics()["population/sigma"] == pytest.approx(0.02)
        assert population.metrics()["population/kl_prior"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("spread", ["site", "dim"])
def test_closed_form_kl_equals_monte_carlo(spread: str) -> None:
    population = norm_noise(0.3, spread=spread)
    population.attach(tiny_network())
    torch.manual_seed(0)
    with torch.no_grad():
        population.mu.normal_(0, 0.2)
        population.log_sigma.add_(torch.randn_like(population.log_sigma) * 0.3)
        sigma = population.log_sigma.exp()
        z = population.mu + sigma * torch.randn(20000, *population.mu.shape, dtype=population.mu.dtype)
        own = torch.distributions.Normal(population.mu, sigma).log_prob(z)
        prior = torch.distributions.Normal(torch.zeros(()), population.sigma0).log_prob(z)
        assert float((own - prior).mean()) == pytest.approx(float(population.kl_to_prior()), rel=0.02)


def test_zero_sigma_has_no_spread_to_train_and_no_prior() -> None:
    population = norm_noise(0.0)
    population.attach(tiny_network())
    assert not population.log_sigma.requires_grad
    assert float(population.kl_to_prior()) == 0
    assert math.isinf(float(population.log_sigma.detach().max()))


def test_auto_sigma_must_be_calibrated_first() -> None:
    policy = Policy(tiny_model(), norm_noise("auto"))
    with pytest.raises(UsageError, match="calibrate"):
        logits_of(policy, IDS, MINDS)
    unscaled = {name: value.clone() for name, value in policy.population.state_dict().items()}
    policy.population.set_scale(0.1)
    logits_of(policy, IDS, MINDS)
    policy.population.load_state_dict(unscaled)
    assert policy.population.lacks == "scale"
    with pytest.raises(UsageError, match="calibrate"):
        logits_of(policy, IDS, MINDS)


def test_bfloat16_keeps_small_offsets() -> None:
    # At |y| ≈ 1 the grid of bf16 is 1/128: adding 0.001 in bf16 would change nothing at all.
    policy = Policy(tiny_model(dtype=torch.bfloat16), norm_noise(0.001))
    assert policy.population.mu.dtype == torch.float32
    assert not torch.equal(logits_of(policy, IDS, MINDS), logits_of(policy, IDS, None))


def test_without_a_population_all_minds_share_one_prompt() -> None:
    policy = tiny_policy(population=NoPopulation(NoPopulation.Options()))
    population = policy.population
    assert population.reader(Mind(3)) == population.reader(Mind(4))
    assert tiny_policy().population.reader(Mind(3)) != tiny_policy().population.reader(Mind(4))
    assert len(set(population.spawn(0, 1, 8))) == 8
    torch.testing.assert_close(logits_of(policy, IDS, MINDS), logits_of(policy, IDS, None))


def test_a_restart_is_where_training_began_to_the_bit() -> None:
    for sigma, spread in ((0.3, "site"), (0.02, "dim"), (0.0, "site")):
        population = norm_noise(sigma, spread=spread)
        population.attach(tiny_network(dtype=torch.float32))
        before = {name: value.clone() for name, value in population.state_dict().items()}
        with torch.no_grad():
            for parameter in population.parameters():
                parameter.add_(0.1)
        population.restart()
        assert all(torch.equal(value, before[name]) for name, value in population.state_dict().items())


def test_a_restart_sets_no_scale_where_there_was_none() -> None:
    population = norm_noise("auto")
    population.attach(tiny_network())
    population.restart()
    assert population.lacks == "scale"
    assert not population.log_sigma.any()


def test_a_population_settles_once_in_a_network_with_the_adapter_in_it() -> None:
    class Settling(NoPopulation):
        seen = ()

        def settle(self, network: torch.nn.Module) -> None:
            adapted = [name for name, _ in network.named_modules() if name.endswith("lora_A")]
            self.seen = (*self.seen, len(adapted))

    for lora in (LoraConfig(rank=2), None):
        policy = tiny_policy(population=(population := Settling(Settling.Options())), lora=lora)
        (adapted,) = population.seen
        assert adapted == sum(name.endswith("lora_A") for name, _ in policy.network.named_modules())
        assert bool(adapted) == (lora is not None)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_final_norm_is_the_one_before_the_head(family: str) -> None:
    network = tiny_network(family)
    sites = norm_sites(network)
    name, module = sites[final_site([name for name, _ in sites])]
    read: list[torch.Tensor] = []
    network.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    module.register_forward_hook(lambda _, inputs, output: read.append(output))
    network(input_ids=IDS)
    assert torch.equal(*read), name


def test_numbered_layers_are_not_the_end_wherever_they_are_listed() -> None:
    assert final_site(["norm", "layers.0.norm", "layers.1.norm"]) == 0
    assert final_site(["layers.0.norm", "layers.1.norm"]) == 1


@pytest.mark.parametrize("spread", ["site", "dim"])
def test_without_a_final_mu_that_alone_stays_where_it_is(spread: str) -> None:
    gradients = {}
    for final_mu in (True, False):
        policy = tiny_policy(population=norm_noise(0.3, spread=spread, final_mu=final_mu))
        logits_of(policy, IDS, MINDS).logsumexp(-1).sum().backward()
        gradients[final_mu] = policy.population.mu.grad, policy.population.log_sigma.grad
    (mu, log_sigma), (without, log_sigma_without) = gradients[True], gradients[False]
    assert (mu.abs().amax(1) > 0).all()
    assert torch.equal(without[:-1], mu[:-1])
    assert not without[-1].any()
    assert torch.equal(log_sigma, log_sigma_without)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sites", ["input", "post-attention", "last-third"])
def test_only_what_stands_behind_chosen_sites_differs_from_the_base_model(family: str, sites: str) -> None:
    policy = Policy(tiny_model(family), norm_noise(0.3, sites=sites))
    names = [name for name, _ in norm_sites(policy.network)]
    chosen = policy.population.sites
    assert 0 < len(chosen) < len(names)
    read: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for name, module in norm_sites(policy.network):
        module.register_forward_pre_hook(lambda _, inputs, name=name: read[name].append(inputs[0].clone()))
    with torch.no_grad():
        logits_of(policy, IDS[:1], MINDS[:1])
        logits_of(policy, IDS[:1], None)
    touched = [name for name in names if not torch.equal(*read[name])]
    first = names.index(chosen[0])
    # What a norm reads is the base model's up to the first offset, and other behind it.
    assert touched == names[first + 1 :]


def test_sites_by_their_place_in_a_layer() -> None:
    names = [f"layers.{layer}.{norm}" for layer in range(6) for norm in ("before", "between", "behind")]
    for norms in ([*names, "norm"], ["norm", *names]):
        assert chosen_sites(norms, "all") == tuple(norms)
        assert chosen_sites(norms, "input") == tuple(f"layers.{layer}.before" for layer in range(6))
        assert chosen_sites(norms, "post-attention") == tuple(f"layers.{layer}.between" for layer in range(6))
        assert set(chosen_sites(norms, "last-third")) == {*names[12:], "norm"}


def test_sites_that_a_model_lacks_are_refused() -> None:
    one_norm = torch.nn.Module()
    one_norm.config = tiny_network("llama").config
    one_norm.norm = torch.nn.RMSNorm(one_norm.config.hidden_size)
    with pytest.raises(UsageError, match="sites must leave some norm, got 'input'"):
        norm_noise(0.3, sites="input").attach(one_norm)


def test_a_frozen_final_mu_is_that_of_the_final_norm_or_none() -> None:
    for sites, frozen in (("last-third", 1), ("input", 0)):
        policy = tiny_policy(population=norm_noise(0.3, sites=sites, final_mu=False))
        logits_of(policy, IDS, MINDS).logsumexp(-1).sum().backward()
        assert int((policy.population.mu.grad.abs().amax(1) == 0).sum()) == frozen, sites


def test_decay_shrinks_sigma_after_a_step_beside_what_is_learned() -> None:
    sigmas = {}
    for decay in (1.0, 0.5):
        session = tiny_session(tiny_policy(population=norm_noise(0.3, decay=decay)))
        learner = Learner(session.policy, session.config)
        updates = [learner.learn(tallies_of(session, step), step) for step in (1, 2)]
        # The second step's rollouts were written, and read again, with the smaller noise.
        assert all(update.logprob_gap < 1e-9 for update in updates)
        sigmas[decay] = updates, session.policy.population.log_sigma.detach().clone()
    (plain, learned), (shrunk, both) = sigmas[1.0], sigmas[0.5]
    assert (both - learned).mean() == pytest.approx(2 * math.log(0.5), rel=0.05)
    assert not torch.equal(both - learned, torch.full_like(both, 2 * math.log(0.5)))
    # Engines are told of it: the policy is another one.
    assert [update.policy_version for update in plain] == [1, 2]
    assert [update.policy_version for update in shrunk] == [2, 4]


def test_noise_that_is_none_does_not_decay_into_something() -> None:
    population = tiny_policy(population=norm_noise(0.0, decay=0.5)).population
    assert population.decay()
    assert (population.log_sigma == -math.inf).all()
    waiting = tiny_policy(population=norm_noise("auto", decay=0.5)).population
    assert not waiting.decay()
