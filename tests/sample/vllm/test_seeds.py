"""Minds by their seeds: a token is shifted as the population shifts it, whoever had the slot before."""

import numpy as np
import pytest
import torch
from fakes import tiny_network
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ttrl_pop.population.norm_noise import NormNoise
from ttrl_pop.sample.vllm.worker.norms import NOBODY, Minds
from ttrl_pop.sample.vllm.worker.seeds import SeededMinds, noise_of
from ttrl_pop.types import Mind

SIGMA = 0.3
LARGE = 2**63 - 1


def seeded(family: str, slots: int) -> tuple[SeededMinds, NormNoise, NormNoise]:
    """A table over the norms of a tiny network, which stands in for vLLM's own; its population, and another one, of
    some of the sites and with a mean."""
    network = tiny_network(family, 0, torch.float32, 16)
    own = noise_of(network.config, SIGMA)
    sites = own.sites[1::2]
    mu = torch.randn(len(sites), 16, generator=torch.Generator().manual_seed(0))
    other = NormNoise.of(sites, mu, torch.full((len(sites), 1), -1.0))
    named = {"": own, "other": other}
    return SeededMinds(network, own.sites, slots, 8, torch.device("cpu"), named.__getitem__), own, other


def offsets(noise: NormNoise, sites: tuple[str, ...], seed: int) -> torch.Tensor:
    """z of a mind at each of `sites`, zero where its population shifts nothing."""
    (z_SD,) = noise.offsets([Mind(seed)]).unbind(1)
    given = dict(zip(noise.sites, z_SD, strict=True))
    return torch.stack([given.get(site, torch.zeros(16)) for site in sites])


def test_a_population_that_is_read_in_inference_mode_is_one_all_the_same() -> None:
    minds, own, _ = seeded("llama", slots=2)
    minds.population = lambda name: NormNoise.of(own.sites, own.mu.detach() + 0, own.log_sigma.detach() + 0)
    with torch.inference_mode():
        minds.tag(np.array([minds.owner({"mind": 3})]))
    assert torch.equal(minds.table[:, 1], offsets(own, own.sites, 3))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_each_token_has_the_offset_of_its_mind_under_whatever_slot(family: str) -> None:
    minds, own, other = seeded(family, slots=2)
    assert float(own.offsets([Mind(3)]).std()) == pytest.approx(SIGMA, rel=0.1)
    assert float(offsets(other, own.sites, 0).abs().sum()) > 0
    a, b, mean = ("", 3), ("other", 3), ("other", 0)
    for batch in ([a, a, ("", 9)], [b, b], [("", LARGE), b], [a, None, b], [mean, mean], [b, a], [mean, a]):
        extras = [None if which is None else {"mind": which[1], "population": which[0]} for which in batch]
        minds.tag(np.array([minds.owner(extra) for extra in extras], np.int64))
        for token, which in enumerate(batch):
            noise = own if which is None or which[0] == "" else other
            expected = 0 * offsets(own, own.sites, 3) if which is None else offsets(noise, own.sites, which[1])
            assert torch.equal(minds.table[:, minds.index[token]], expected)


def test_minds_of_a_batch_never_take_each_others_slots() -> None:
    minds, _, _ = seeded("llama", slots=3)
    numbers = [minds.owner({"mind": seed}) for seed in range(1, 6)]
    minds.tag(np.array(numbers[:3]))
    minds.tag(np.array([numbers[3], numbers[1], numbers[4]]))
    assert sorted(minds.index[:3].tolist()) == [1, 2, 3]
    minds.tag(np.array([numbers[3]]))
    assert len(set(minds._slot.values())) == len(minds._slot) <= 3


def test_a_request_without_a_mind_has_none() -> None:
    minds, _, _ = seeded("llama", slots=3)
    assert minds.owner(None) == minds.owner({}) == NOBODY
    assert minds.owner({"mind": 0}) == minds.owner({"mind": 0, "population": ""}) != minds.owner({"mind": 1})


def test_the_noise_is_the_populations_without_a_model_in_memory() -> None:
    network = tiny_network("qwen2", 0, torch.float32, 16)
    from ttrl_pop.api.population import population

    own = population(network, sigma=SIGMA).population
    noise = noise_of(network.config, SIGMA)
    assert noise.sites == own.sites
    assert torch.equal(noise.offsets([Mind(7)]), own.offsets([Mind(7)]))
    numbers = NormNoise.of(own.sites, own.mu.detach(), own.log_sigma.detach())
    assert torch.equal(numbers.offsets([Mind(7)]), own.offsets([Mind(7)]))


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma3RMSNorm])
def test_a_small_offset_arrives_in_bf16(kind: type[nn.Module], with_residual: bool) -> None:
    class Norm(kind):  # type: ignore[misc,valid-type]
        """As vLLM's: with a residual, it norms the sum, and gives that back, too."""

        def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> object:
            if residual is None:
                return super().forward(x)
            return super().forward(x + residual), x + residual

    draw = torch.Generator().manual_seed(0)
    norm = Norm(64).bfloat16().requires_grad_(False)
    norm.weight.copy_(0.1 * torch.randn(64, generator=draw) + (kind is LlamaRMSNorm))
    model = nn.Module()
    model.norm = norm
    x, residual = (torch.randn(1024, 64, generator=draw).bfloat16() for _ in range(2))
    minds = Minds(model, ["norm"], 1, len(x), torch.device("cpu"))
    minds.table[0, 1] = 1e-3
    given = (x, residual) if with_residual else (x,)
    found = []
    for slot in (0, 1):
        minds.fill(slot)
        y = norm(*given)
        assert y[0].dtype == torch.bfloat16
        found.append((y[0] if with_residual else y).double())
    assert float((found[1] - found[0]).mean()) == pytest.approx(1e-3, rel=0.15)
