"""Proof at every start that each mind reaches the tokens that it should, and no others.

On made-up prompts, and with noise so large that a wrong mind cannot hide, a mixed batch of two minds and of none is
written by the engine. The learner's log-probabilities of what it wrote, under the mind that was asked for, must be the
engine's: that fails for a hook that vLLM went round, for compiled code from before the hook, for minds of wrong seeds
or in wrong slots, and for other weights. A prompt must not be read from the cache of another mind.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch

from ttrl_pop import randomness
from ttrl_pop.config import SamplingConfig
from ttrl_pop.errors import EngineError
from ttrl_pop.model.logprobs import token_logprobs
from ttrl_pop.model.policy import Policy
from ttrl_pop.population.base import MEAN
from ttrl_pop.population.norm_noise import NormNoise
from ttrl_pop.sample.backend import Request
from ttrl_pop.types import Mind, Rollout

TOKENS = 6
"""Tokens of each completion that the test asks for."""

APART = 0.5
"""Mean |Δ log p|, nats per token, that the noise must put between two minds."""

CLOSE = {"float32": 1e-3, "bfloat16": 0.15}
"""Mean |Δ log p| of the same mind on both sides that rounding explains."""

FIRST_SIGMA = 0.02

DOUBLINGS = 12
"""Times that sigma is doubled to put minds far enough apart."""


@dataclass(frozen=True, slots=True)
class Remedies:
    """What a user can do about each fault that the test may find in a backend."""

    backend: str
    """Name of the backend."""
    model: str
    """Where the engine runs other weights."""
    minds: str
    """Where minds do not act."""
    cache: str
    """Where one mind reads prompts that another has cached."""


@runtime_checkable
class Probe(Protocol):
    """What the test needs of a backend."""

    remedies: ClassVar[Remedies]
    policy: Policy
    sampling: SamplingConfig
    cached_tokens: int
    """Prompt tokens of the last call of `rollouts` that the engine had read before."""

    @property
    def block(self) -> int:
        """Tokens of a block of the engine's prefix cache."""

    def with_sampling(self, sampling: SamplingConfig) -> "Probe":
        """The same engine under other settings."""

    def rollouts(self, requests: Sequence[Request]) -> Iterator[tuple[int, Rollout]]:
        """Yield (index into `requests`, rollout), as every backend does."""


def self_test(backend: Probe, nonce: str = "") -> None:
    """Let the engine write under minds and under none, and hold it against the learner.

    Args:
        nonce: another one for every test of an engine that outlives the run, whose cache may know minds of an earlier
            test.

    Raises:
        EngineError: the engine does not write what the learner reads.
    """
    policy, block, remedies = backend.policy, backend.block, backend.remedies
    prompts = [made_up(policy, length) for length in (2 * block + 3, 5, block + 1)]
    minds = [Mind(randomness.seed("self-test", nonce, i)) for i in range(4)]
    noisy = isinstance(policy.population, NormNoise)
    probe = backend.with_sampling(SamplingConfig(max_new_tokens=TOKENS, max_rows=backend.sampling.max_rows))
    with far_apart(policy, prompts[0], minds[:2], remedies) if noisy else nullcontext():
        asked = (None, minds[0], minds[1], minds[0]) if noisy else (None, MEAN)
        requests = [
            Request(prompt, mind, ("self-test", p, i))
            for p, prompt in enumerate(prompts)
            for i, mind in enumerate(asked)
        ]
        written = dict(probe.rollouts(requests))
        for mind in dict.fromkeys(asked):
            mine = [written[i] for i, request in enumerate(requests) if request.mind == mind]
            check_gap(policy, mine, mind, remedies)
        if noisy:
            check_cache(probe, prompts[0], minds[2:])


def check_gap(policy: Policy, rollouts: Sequence[Rollout], mind: Mind | None, remedies: Remedies) -> None:
    """Hold the engine's log-probabilities of what it wrote under `mind` against the learner's.

    Raises:
        EngineError: the learner holds these rollouts of `mind` for less or more likely than the engine did.
    """
    learner = logprobs(policy, rollouts, mind)
    engine = torch.tensor([value for rollout in rollouts for value in rollout.logprobs], dtype=learner.dtype)
    gap, close = float((learner - engine).abs().mean()), CLOSE[policy.dtype_name]
    if not gap <= close:
        found, reason = (
            ("without a mind", f"the engine runs another model; {remedies.model}")
            if mind is None
            else ("of one mind", f"its minds do not act; {remedies.minds}")
        )
        raise EngineError(
            f"self-test of backend {remedies.backend}: log-probabilities {found} differ by {gap:.2g} nats per token "
            f"from the learner's (rounding: {close:g}): {reason}"
        )


def check_cache(probe: Probe, prompt: tuple[int, ...], minds: Sequence[Mind]) -> None:
    """Let minds that have written nothing yet read the same prompt, one after another.

    Raises:
        EngineError: one mind read a prompt from the cache of another.
    """
    for mind in minds:
        for _ in probe.rollouts([Request(prompt, mind, ("self-test", "cache", mind.seed))]):
            if probe.cached_tokens:
                raise EngineError(
                    f"self-test of backend {probe.remedies.backend}: {probe.cached_tokens} cached tokens of one mind "
                    f"were read by another; {probe.remedies.cache}"
                )


@contextmanager
def far_apart(policy: Policy, prompt: tuple[int, ...], minds: Sequence[Mind], remedies: Remedies) -> Iterator[None]:
    """While active, the population's minds are so far apart that one cannot be taken for the other.

    Raises:
        EngineError: no noise does it.
    """
    population = policy.population
    before = {name: value.clone() for name, value in population.state_dict().items()}
    trained = {name: parameter.requires_grad for name, parameter in population.named_parameters()}
    # The prompt as if it were a completion: what a mind thinks of each of its tokens.
    text = Rollout(MEAN, prompt[:1], prompt[1:], (), "", "length", 0)
    try:
        for doubling in range(DOUBLINGS):
            population.set_scale(FIRST_SIGMA * 2**doubling)
            views = [logprobs(policy, [text], mind) for mind in (None, *minds)]
            pairs = ((views[0], views[1]), (views[0], views[2]), (views[1], views[2]))
            if min(float((one - other).abs().mean()) for one, other in pairs) >= APART:
                break
        else:
            raise EngineError(
                f"self-test of backend {remedies.backend}: no noise tells minds of this model apart; use --backend hf"
            )
        yield
    finally:
        population.load_state_dict(before)
        for name, parameter in population.named_parameters():
            parameter.requires_grad_(trained[name])


@torch.no_grad()
def logprobs(policy: Policy, rollouts: Sequence[Rollout], mind: Mind | None) -> torch.Tensor:
    """The learner's log-probabilities of all tokens of these rollouts under one mind, one after another."""
    minds = None if mind is None else [mind] * len(rollouts)
    rows, mask = token_logprobs(policy, rollouts, minds, 1.0)
    return rows[mask].cpu()


def made_up(policy: Policy, length: int) -> tuple[int, ...]:
    """A prompt of `length` tokens, none of which ends a sequence."""
    vocabulary = policy.network.get_input_embeddings().weight.shape[0]
    drawn = randomness.stream("self-test", length).integers(0, vocabulary, 2 * length + 8).tolist()
    return tuple([token for token in drawn if token not in policy.model.eos_ids][:length])
