"""Rollouts by servers of vLLM: the policy's side.

What differs from `vllm`:
1. The engines are processes of their own, here or elsewhere, and outlive the run. Each has loaded the base model by
   itself and is proved to run the policy before it writes for it.
2. The policy is handed over by a folder that all see: adapter and population, under a name made of their content. A
   request names the policy and the seed of its mind; the server draws the mind.
3. A request goes to the server that has least to do. If that dies, it is asked elsewhere: the seed of its stream makes
   it the same rollout, as far as rounding lets it.
"""

import itertools
import secrets
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Any, ClassVar

from ttrl_pop import randomness
from ttrl_pop.config import SamplingConfig, Section
from ttrl_pop.errors import EngineError, UsageError
from ttrl_pop.model.policy import Policy
from ttrl_pop.population.norm_noise import NormNoise
from ttrl_pop.ranks.ranks import current
from ttrl_pop.sample.backend import Backend, Request, Weights
from ttrl_pop.sample.vllm import policy_files
from ttrl_pop.sample.vllm.backend import GAPS, noisy_sites
from ttrl_pop.sample.vllm.selftest import Remedies, self_test
from ttrl_pop.sample.vllm_server.options import VllmServerOptions
from ttrl_pop.sample.vllm_server.servers import Server, Servers
from ttrl_pop.types import FinishReason, Rollout

KEPT = 2
"""Policies that stay in the folder: the one that writes, and the one before."""

_numbers = itertools.count()
"""Numbers of the backends of this process."""

BLOCK = 64
"""Tokens of the blocks that the self-test's prompts should span, where no server says how long its own are."""


class VllmServerBackend(Backend):
    """Servers of vLLM as one engine of rollouts, with a mind for each request."""

    Options: ClassVar[type[Section]] = VllmServerOptions
    options: VllmServerOptions
    remedies: ClassVar[Remedies] = Remedies(
        backend="vllm-server",
        model="start it with the run's model and dtype",
        minds="start it with --additional-config and the folder of policies, where ttrl-pop is installed beside vLLM",
        cache="start it with --no-enable-prefix-caching",
    )

    def __init__(self, policy: Policy, sampling: SamplingConfig, options: Any = None) -> None:
        """Reach all servers and prove each of them.

        Raises:
            UsageError: a server cannot be reached, or this population or dtype is not known there.
            EngineError: a server runs another model, or its minds do not act.
        """
        super().__init__(policy, sampling, options)
        if not self.options.urls or self.options.folder is None:
            raise UsageError(
                "backend vllm-server needs backend_options.urls, addresses of servers, and backend_options.folder, "
                "which they and the learner see: --set 'backend_options.urls=[\"http://host:8000\"]'"
            )
        noisy_sites(policy.population)
        if policy.dtype_name not in GAPS:
            raise UsageError(f"backend vllm-server runs in {' or '.join(GAPS)}, got dtype {policy.dtype_name}")
        self.folder = policy_files.folder_of(self.options.folder)
        # Processes of one run share what they publish, where each has opened as many backends.
        self.owner = f"{current().name or secrets.token_hex(8)}-{next(_numbers)}"
        self.servers = Servers.reached(self.options.urls, self.options.timeout)
        self.cached_tokens = 0
        """Prompt tokens of the last call of `rollouts` that servers had read before, where they say so."""
        # Listed once: while its adapter is off, the policy counts it as not trained.
        self._watched = [*policy.adapter_parameters().values(), *policy.population.parameters()]
        self._published: list[str] = []
        self._held: tuple[object, ...] | None = None
        self._version = policy.version
        try:
            for server in self.servers.servers:
                self._prove(server)
        except BaseException:
            self.close()
            raise

    @property
    def block(self) -> int:
        """Tokens of a block of a server's prefix cache, as far as prompts of that length fit."""
        return max(4, min(BLOCK, (self.servers.longest - 16) // 3))

    def learner_defaults(self) -> dict[str, Any]:
        return {"tis": True, "max_logprob_gap": GAPS[self.policy.dtype_name]}

    def rollouts(self, requests: Sequence[Request], weights: Weights = "policy") -> Iterator[tuple[int, Rollout]]:
        longest = max((len(request.prompt_ids) for request in requests), default=0) + self.sampling.max_new_tokens
        if longest > self.servers.longest:
            raise UsageError(
                f"a prompt and its completion may come to {longest} tokens, a server has room for "
                f"{self.servers.longest}; start it with a larger --max-model-len or lower sampling.max_new_tokens"
            )
        self.cached_tokens = 0
        name = self._publish()
        bodies = [self._body(request, weights, name) for request in requests]
        for index, answer in self.servers.ask(bodies, self.sampling.max_rows):
            yield index, self._read(requests[index], answer)

    def with_sampling(self, sampling: SamplingConfig) -> "VllmServerBackend":
        other = super().with_sampling(sampling)
        assert isinstance(other, VllmServerBackend)
        return other

    def refresh(self) -> None:
        self.servers.revive(self._prove)

    def close(self) -> None:
        for name in self._published:
            policy_files.withdraw(self.folder, name)
        self._published.clear()

    def _prove(self, server: Server) -> None:
        """Hold what a server writes against the learner.

        Raises:
            EngineError: it is not what the learner reads.
        """
        alone = copy(self)
        alone.servers = self.servers.alone(server)
        try:
            self_test(alone, secrets.token_hex(8))
        except EngineError as error:
            raise EngineError(f"{server.client.url}: {error}") from error

    def _publish(self) -> str:
        """Name of the policy as it is now, written to the folder if it has changed."""
        policy = self.policy
        now = (policy.version, *((tensor.data_ptr(), tensor._version) for tensor in self._watched))
        # Another process of this run may have withdrawn the same one.
        if now != self._held or not self._published or not (self.folder / self._published[-1]).is_dir():
            population = policy.population if isinstance(policy.population, NormNoise) else None
            name = policy_files.publish(self.folder, policy.adapter, population, self.owner)
            # Not by its place: the self-test comes back to a policy that was there before.
            if name in self._published:
                self._published.remove(name)
            self._published.append(name)
            for old in self._published[:-KEPT]:
                policy_files.withdraw(self.folder, old)
            del self._published[:-KEPT]
            self._held, self._version = now, policy.version
        return self._published[-1]

    def _body(self, request: Request, weights: Weights, name: str) -> Callable[[Server], dict[str, Any]]:
        """The request for a completion, for whichever server gets it."""
        sampling, population = self.sampling, self.policy.population
        adapted = weights == "policy" and self.policy.adapter is not None
        body: dict[str, Any] = {
            "prompt": list(request.prompt_ids),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # What a model's own settings would put in their place.
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "seed": randomness.seed(*request.stream_key),
            "stop": list(sampling.stop),
            "stop_token_ids": sorted(self.stop_ids),
            "ignore_eos": True,
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
        if request.mind is not None and isinstance(population, NormNoise):
            body["vllm_xargs"] = {"mind": population.reader(request.mind).seed, "population": name}
        return lambda server: {**body, "model": name if adapted else server.model}

    def _read(self, request: Request, answer: dict[str, Any]) -> Rollout:
        """The rollout that a server's answer holds.

        Raises:
            EngineError: it is not what was asked for.
        """
        try:
            (choice,) = answer["choices"]
            ids = [int(token) for token in choice["token_ids"]]
            logprobs = [float(value) for value in choice["logprobs"]["token_logprobs"]]
            reason: FinishReason = "stop" if choice["finish_reason"] == "stop" else "length"
            details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
            self.cached_tokens += int(details.get("cached_tokens") or 0)
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError(
                f"a server's answer has no tokens with their log-probabilities ({type(error).__name__}: {error}); it "
                "must be vLLM 0.32 or like it"
            ) from error
        if not ids or len(ids) != len(logprobs):
            raise EngineError(f"a server answered with {len(ids)} tokens and {len(logprobs)} log-probabilities")
        # A server looks for stop strings in what it has decoded; the learner's rule is the one that counts.
        end = next((n for n in range(1, len(ids) + 1) if self._ends(ids, n)), None)
        if end is not None:
            ids, logprobs, reason = ids[:end], logprobs[:end], "stop"
        return self.rollout(request, ids, logprobs, reason, self._version)

    def _ends(self, ids: Sequence[int], count: int) -> bool:
        """Whether the completion has ended with its first `count` tokens."""
        # Without stop strings one look at the last token says it.
        if not self.sampling.stop:
            return ids[count - 1] in self.stop_ids
        return self.ended(ids[:count])
