"""One truth on a device and in a type: packed, cached, recorded and plain forwards give the same log-probabilities."""

from typing import Any

import pytest
import torch
from fakes import FAMILIES, MANY_STOPS, norm_noise, own_attention, requests, stripped, tiny_policy

from ttrl_pop.config import SamplingConfig
from ttrl_pop.model.logprobs import token_logprobs
from ttrl_pop.model.policy import Policy
from ttrl_pop.packing.pack import Branch, Tree, pack
from ttrl_pop.population.base import NoPopulation
from ttrl_pop.sample.hf.backend import HfBackend, HfOptions
from ttrl_pop.types import Mind, Rollout

WIDTH = 64
"""So that heads have 16 numbers, which the fused kernels of attention take."""
FLOAT32, BF16 = torch.float32, torch.bfloat16
LARGEST = {FLOAT32: 2e-4, BF16: 0.5}
"""Largest difference of two log-probabilities by rounding; of these random models logits reach some tens."""
MEAN = {FLOAT32: 2e-5, BF16: 0.05}
"""Mean difference."""

both = pytest.mark.parametrize("dtype", [FLOAT32, BF16], ids=["float32", "bf16"])
families = pytest.mark.parametrize("family", FAMILIES)


def policy_of(family: str, dtype: torch.dtype, device: str, **options: Any) -> Policy:
    return tiny_policy(family, dtype=dtype, width=WIDTH, device=device, **options)


def written(policy: Policy, graphs: bool = False, minds: int = 3, **options: object) -> list[Rollout]:
    sampling = SamplingConfig(**{"max_new_tokens": 24, **options})
    found = dict(HfBackend(policy, sampling, HfOptions(graphs=graphs)).rollouts(requests(policy, minds)))
    return [found[index] for index in range(len(found))]


def check_close(one: torch.Tensor, other: torch.Tensor, dtype: torch.dtype) -> None:
    gaps = (one.double().cpu() - other.double().cpu()).abs()
    assert float(gaps.max()) <= LARGEST[dtype]
    assert float(gaps.mean()) <= MEAN[dtype]


def sampled(rollouts: list[Rollout]) -> torch.Tensor:
    return torch.tensor([value for rollout in rollouts for value in rollout.logprobs])


def learned(policy: Policy, rollouts: list[Rollout], temperature: float = 1.0) -> torch.Tensor:
    with torch.no_grad():
        logprobs, mask = token_logprobs(policy, rollouts, [r.mind for r in rollouts], temperature)
    return logprobs[mask]


@both
@families
def test_what_is_decoded_from_the_cache_is_what_the_learner_reads(family: str, dtype: torch.dtype, device: str) -> None:
    policy = policy_of(family, dtype, device)
    rollouts = written(policy, temperature=0.7)
    check_close(sampled(rollouts), learned(policy, rollouts, 0.7), dtype)


@both
@families
def test_a_row_alone_gives_what_the_packed_row_gives(family: str, dtype: torch.dtype, device: str) -> None:
    policy = policy_of(family, dtype, device)
    rollouts = written(policy, **MANY_STOPS)
    alone = torch.cat([learned(policy, [rollout]) for rollout in rollouts])
    check_close(alone, learned(policy, rollouts), dtype)


@both
@families
def test_packed_rows_give_what_transformers_own_attention_gives(family: str, dtype: torch.dtype, device: str) -> None:
    policy = policy_of(family, dtype, device, lora=None)
    ids = torch.tensor([[5 + 7 * i % 60 for i in range(40)], [9 + 11 * i % 60 for i in range(40)]], device=device)
    with torch.no_grad():
        with own_attention(policy.network):
            plain = torch.log_softmax(policy.network(input_ids=ids, use_cache=False).logits.double(), -1)
        packed = pack(
            [Tree(tuple(row[:12]), None, (Branch(tuple(row[12:]), None),)) for row in ids.tolist()], ids.device
        )
        hidden = policy.hidden(packed)
        for row in range(2):
            wanted = [*packed.stems[row][0], *(token for piece in packed.branches[row][0] for token in piece)]
            ours = torch.log_softmax(policy.logits(hidden[wanted]).double(), -1)
            check_close(ours, plain[row], dtype)


@families
def test_on_the_device_log_probabilities_are_those_of_the_cpu(family: str, device: str) -> None:
    policy = policy_of(family, FLOAT32, device)
    rollouts = written(policy)
    reference = tiny_policy(family, dtype=torch.float64, width=WIDTH)
    # Of one seed, but for rounding: parameters are drawn in the type that they have.
    reference.network.load_state_dict({n: t.double().cpu() for n, t in policy.network.state_dict().items()})
    reference.population.load_state_dict({n: t.double().cpu() for n, t in policy.population.state_dict().items()})
    check_close(learned(policy, rollouts), learned(reference, rollouts), FLOAT32)


@pytest.mark.usefixtures("on_cuda")
@both
@families
def test_recorded_steps_write_what_steps_write(family: str, dtype: torch.dtype, device: str) -> None:
    policy = policy_of(family, dtype, device)
    options = {"max_rows": 7, "max_new_tokens": 40, **MANY_STOPS}
    plain, recorded = written(policy, **options), written(policy, graphs=True, **options)
    same = [a == b for a, b in zip(stripped(plain), stripped(recorded), strict=True)]
    # Masks are padded to other widths, so rounding may differ, and a token where its number fell between.
    assert sum(same) >= (len(same) if dtype == FLOAT32 else 0.5 * len(same))
    check_close(sampled(recorded), learned(policy, recorded, 3.0), dtype)


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("kind", ["dim", "completion", "none"])
def test_so_they_do_for_other_populations(kind: str, device: str) -> None:
    kinds = {
        "dim": lambda: norm_noise(0.3, spread="dim"),
        "completion": lambda: norm_noise(0.3, scope="completion"),
        "none": lambda: NoPopulation(NoPopulation.Options()),
    }
    policy = policy_of("llama", FLOAT32, device, population=kinds[kind]())
    assert stripped(written(policy, graphs=True, max_rows=5)) == stripped(written(policy, max_rows=5))


@both
def test_a_small_sigma_reaches_the_residual_stream(dtype: torch.dtype, device: str) -> None:
    sigma = 0.004
    policy = policy_of("llama", dtype, device, population=norm_noise(sigma), lora=None, warm=False)
    norm, seen = policy.network.model.norm, []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output.detach().double().cpu()))
    layer = policy.network.model.layers[0].input_layernorm
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.detach().double().cpu()))
    ids = tuple(5 + 7 * i % 60 for i in range(60))
    with torch.no_grad():
        policy.hidden(pack([Tree(ids, None)], policy.device))
        policy.hidden(pack([Tree(ids, Mind(5))], policy.device))
    base, mind = seen[0], seen[2]
    # In bf16 most single numbers are rounded by more than this; their mean over tokens is the offset all the same.
    offset = (mind - base).flatten(0, -2)
    eps = policy.population.standard_noise(5)[0, 0].double().cpu()
    found = float((offset.mean(0) * eps).mean() / (eps * eps).mean())
    assert found == pytest.approx(sigma, rel=0.02 if dtype == FLOAT32 else 0.2)
