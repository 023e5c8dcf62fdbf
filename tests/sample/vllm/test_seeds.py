"""Minds by their seeds: a token is shifted as the population shifts it, whoever had the slot before."""

import numpy as np
import pytest
import torch
from fakes import tiny_network

from ttrl_pop.sample.vllm.worker.norms import NOBODY
from ttrl_pop.sample.vllm.worker.seeds import SeededMinds, noise_of
from ttrl_pop.types import Mind

SIGMA = 0.3
LARGE = 2**63 - 1


def seeded(family: str, slots: int) -> tuple[SeededMinds, torch.Tensor]:
    """A table over the norms of a tiny network, which stands in for vLLM's own, and mean offsets of its sites."""
    network = tiny_network(family, 0, torch.float32, 16)
    noise = noise_of(network.config, SIGMA)
    return SeededMinds(network, noise, slots, 8, torch.device("cpu")), noise.offsets([Mind(3), Mind(LARGE), Mind(5)])


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_each_token_has_the_offset_of_its_seed_under_whatever_slot(family: str) -> None:
    minds, z_SMD = seeded(family, slots=2)
    expected = {3: z_SMD[:, 0], LARGE: z_SMD[:, 1], 5: z_SMD[:, 2], 0: 0 * z_SMD[:, 0], NOBODY: 0 * z_SMD[:, 0]}
    assert float(z_SMD.std()) == pytest.approx(SIGMA, rel=0.1)
    for batch in ([3, 3, 0, LARGE], [LARGE, 5, 5], [3, NOBODY, 5], [0, 0], [LARGE, 3]):
        minds.tag(np.array(batch, np.int64))
        for token, seed in enumerate(batch):
            assert torch.equal(minds.table[:, minds.index[token]], expected[seed])


def test_minds_of_a_batch_never_take_each_others_slots() -> None:
    minds, _ = seeded("llama", slots=3)
    minds.tag(np.array([1, 2, 3]))
    minds.tag(np.array([4, 2, 5]))
    assert sorted(minds.index[:3].tolist()) == [1, 2, 3]
    minds.tag(np.array([4]))
    assert len(set(minds._slot.values())) == len(minds._slot) <= 3


def test_the_noise_is_the_populations_without_a_model_in_memory() -> None:
    network = tiny_network("qwen2", 0, torch.float32, 16)
    from ttrl_pop.api.population import population

    own = population(network, sigma=SIGMA).population
    noise = noise_of(network.config, SIGMA)
    assert noise.sites == own.sites
    assert torch.equal(noise.offsets([Mind(7)]), own.offsets([Mind(7)]))
