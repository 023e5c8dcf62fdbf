"""On a GPU that is not there: torch's fake tensors have a device and a shape and no numbers. What would mix tensors of
the host with those of the device, or look at a result, fails on them."""

from collections.abc import Iterator

import pytest
import torch
from fakes import norm_noise, tiny_policy
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ttrl_pop.model.policy import Policy
from ttrl_pop.packing.pack import Branch, Tree, pack
from ttrl_pop.population.norm_noise import NormNoise
from ttrl_pop.sample.hf.cache import KeyValueCache, prefill
from ttrl_pop.sample.hf.decode import DecodeStep
from ttrl_pop.sample.hf.draw import draw
from ttrl_pop.types import Mind

DEVICE = torch.device("meta")
"""Fake tensors on it may not meet those of the CPU, as those on a GPU may not; a torch without CUDA cannot index fake
CUDA tensors."""
MINDS = (Mind(5), Mind(7))


@pytest.fixture(params=["sequence", "completion"])
def policy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Policy]:
    # What fused layers hold of weights cannot be exchanged afterwards; they are made of operations without a device.
    monkeypatch.setattr("ttrl_pop.model.policy.fuse", lambda *_: None)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    policy = tiny_policy(population=norm_noise(0.3, scope=request.param), dtype=torch.float32)
    assert not policy.population.lacks
    mode, known = FakeTensorMode(allow_non_fake_inputs=True), {}

    def faked(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            fake = FakeTensor(mode, tensor.detach().to("meta"), device=DEVICE)
            is_parameter = isinstance(tensor, nn.Parameter)
            known[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
        return known[id(tensor)]

    for module in (*policy.network.modules(), *policy.population.modules()):
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: faked(tensor) for name, tensor in tensors.items() if tensor is not None})
    assert isinstance(policy.population, NormNoise)
    policy.population._scale_seen = policy.population.sigma0._version
    with mode:
        yield policy


def test_the_learner_s_forward_and_backward_stay_on_the_device(policy: Policy) -> None:
    trees = [
        Tree((3, 4, 5, 6, 7), policy.population.reader(mind), tuple(Branch((8, 9, 10 + i), mind) for i in range(2)))
        for mind in MINDS
    ]
    hidden = policy.hidden(pack(trees, policy.device))
    assert hidden.device == DEVICE
    parameters = [*policy.adapter_parameters().values(), *policy.population_parameters().values()]
    gradients = torch.autograd.grad(policy.logits(hidden).sum(), parameters)
    assert {gradient.device for gradient in gradients} == {DEVICE}


@torch.no_grad()
def test_so_do_prompts_and_decode_steps(policy: Policy) -> None:
    cache = KeyValueCache(4, 20)
    trees = [Tree((3, 4, 5, 6 + i), policy.population.reader(mind)) for i, mind in enumerate(MINDS)]
    slots = [range(2), range(2, 4)]
    assert policy.hidden(prefill(pack(trees, policy.device), cache, slots)).device == DEVICE
    step = DecodeStep(policy, cache, MINDS, lambda hidden, u: draw(policy.logits(hidden), u, 0.7, 0.9), 4, 12)
    step.load([1, 2, 3, 4], [4] * 4, [19] * 4, [0, 0, 1, 1])
    step()
    step()
    assert {tensor.device for tensor in (step.tokens_B, step.logprobs_B, step.positions_B)} == {DEVICE}
