"""Rollouts by vLLM: the policy's side.

What differs from `hf`:
1. The engine has its own copy of the base weights. The adapter and the offsets of the minds are handed over anew when
   they have changed, found by the tensors' versions, so that weights loaded or averaged by anyone are seen.
2. Tokens are drawn by vLLM, seeded for each request by its stream key: repeatable, but other draws than those of `hf`,
   and rounding depends on the batch. Greedy completions agree with `hf` up to rounding.
3. More minds than the engine has slots take turns.
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from ttrl_pop import randomness
from ttrl_pop.config import SamplingConfig, Section
from ttrl_pop.errors import UsageError
from ttrl_pop.model.policy import Policy
from ttrl_pop.population.base import NoPopulation, Population
from ttrl_pop.population.norm_noise import NormNoise
from ttrl_pop.sample.backend import Backend, Request, Weights
from ttrl_pop.sample.vllm.options import VllmOptions
from ttrl_pop.sample.vllm.selftest import Remedies, self_test
from ttrl_pop.types import FinishReason, Mind, Rollout

GAPS = {"float32": 1e-3, "bfloat16": 0.05}
"""Mean |Δ| of the two sides' log-probabilities that rounding explains, with a wide margin."""


class VllmBackend(Backend):
    """vLLM as an engine of rollouts, with a mind for each request."""

    Options: ClassVar[type[Section]] = VllmOptions
    options: VllmOptions
    remedies: ClassVar[Remedies] = Remedies(
        backend="vllm",
        model="pass --backend hf",
        minds="pass --set backend_options.minds=serial, or --backend hf",
        cache="pass --set backend_options.engine.enable_prefix_caching=false, or --backend hf",
    )

    def __init__(self, policy: Policy, sampling: SamplingConfig, options: Any = None) -> None:
        """Start an engine and prove that minds reach its tokens.

        Raises:
            UsageError: vLLM is not installed, or cannot run this model, population or dtype.
            EngineError: the self-test failed.
        """
        super().__init__(policy, sampling, options)
        sites = noisy_sites(policy.population)
        if policy.model.source is None:
            raise UsageError("backend vllm reads the model from its folder; a model made in memory needs --backend hf")
        if policy.dtype_name not in GAPS:
            raise UsageError(f"backend vllm runs in {' or '.join(GAPS)}, got dtype {policy.dtype_name}")
        try:
            from ttrl_pop.sample.vllm.engine import Engine
            from ttrl_pop.sample.vllm.launch import Model
        except ImportError as error:
            raise UsageError(f"backend vllm needs vLLM ({error}); run: pip install 'ttrl-pop[vllm]'") from error
        self.engine = Engine(
            Model(
                source=policy.model.source,
                dtype=policy.dtype_name,
                context_length=policy.model.context_length,
                sites=sites,
                rank=None if policy.adapter is None else policy.adapter.peft_config["default"].r,
                rows=sampling.max_rows,
                shared_gpu=policy.device.type == "cuda",
            ),
            self.options,
        )
        self.cached_tokens = 0
        """Prompt tokens of the last call of `rollouts` that the engine had read before."""
        # Listed once: while its adapter is off, the policy counts it as not trained.
        self._watched = [*policy.adapter_parameters().values(), *policy.population.parameters()]
        self._held: tuple[object, ...] | None = None
        self._version = policy.version
        self._minds: tuple[Mind, ...] = ()
        try:
            self_test(self)
        except BaseException:
            self.close()
            raise

    @property
    def block(self) -> int:
        """Tokens of a block of the engine's prefix cache."""
        return self.engine.block

    def learner_defaults(self) -> dict[str, Any]:
        return {"tis": True, "max_logprob_gap": GAPS[self.policy.dtype_name]}

    def rollouts(self, requests: Sequence[Request], weights: Weights = "policy") -> Iterator[tuple[int, Rollout]]:
        longest = max((len(request.prompt_ids) for request in requests), default=0) + self.sampling.max_new_tokens
        if longest > self.engine.longest:
            raise UsageError(
                f"a prompt and its completion may come to {longest} tokens, the engine has room for "
                f"{self.engine.longest}; raise backend_options.max_model_len or lower sampling.max_new_tokens"
            )
        self.cached_tokens = 0
        try:
            if self.engine.wake():
                self._held = None
            self._take_over()
            for minds, part in self._turns(requests):
                self._embody(minds)
                yield from self._write(requests, part, weights)
        finally:
            self.engine.sleep()

    def refresh(self) -> None:
        self._held = None

    def close(self) -> None:
        self.engine.close()

    def with_sampling(self, sampling: SamplingConfig) -> "VllmBackend":
        other = super().with_sampling(sampling)
        assert isinstance(other, VllmBackend)
        # Neither knows what the other hands over.
        other._held = self._held = None
        return other

    def _take_over(self) -> None:
        """Hand adapter and version to the engine where they have changed."""
        policy = self.policy
        now = (policy.version, *((tensor.data_ptr(), tensor._version) for tensor in self._watched))
        if now == self._held:
            return
        if policy.adapter is not None:
            self.engine.load_adapter(policy.adapter)
        self.engine.forget()
        self._held, self._version, self._minds = now, policy.version, ()

    def _turns(self, requests: Sequence[Request]) -> Iterator[tuple[tuple[Mind, ...], list[int]]]:
        """The minds that the engine holds at a time, and the indices of their requests; those without a mind go with
        the first. Minds keep the order in which they come up."""
        if not self.engine.sites:
            yield (), list(range(len(requests)))
            return
        minds = tuple(dict.fromkeys(request.mind for request in requests if request.mind is not None))
        slots = self.options.slots if self.options.minds == "batched" else 1
        rest = [i for i, request in enumerate(requests) if request.mind is None]
        if rest and self.options.minds == "serial":
            yield (), rest
            rest = []
        for start in range(0, len(minds), slots):
            held = set(minds[start : start + slots])
            mine = [i for i, request in enumerate(requests) if request.mind in held]
            yield minds[start : start + slots], sorted(mine + rest)
            rest = []
        if rest:
            yield (), rest

    def _embody(self, minds: tuple[Mind, ...]) -> None:
        if not self.engine.sites:
            return
        if minds and minds != self._minds:
            assert isinstance(self.policy.population, NormNoise)
            self.engine.write_minds(self.policy.population.offsets(minds))
            self._minds = minds
        if self.options.minds == "serial":
            self.engine.fill(len(minds))

    def _write(
        self, requests: Sequence[Request], part: Sequence[int], weights: Weights
    ) -> Iterator[tuple[int, Rollout]]:
        from ttrl_pop.sample.vllm.engine import Order

        sampling, population = self.sampling, self.policy.population
        slots = {mind: slot for slot, mind in enumerate(self._minds, start=1)} if self.engine.sites else {}
        model = self.policy.model
        stop_ids = tuple(sorted(self.stop_ids))
        orders = []
        for i in part:
            request = requests[i]
            mind = "none" if request.mind is None else population.reader(request.mind).seed
            orders.append(
                Order(
                    prompt_ids=request.prompt_ids,
                    slot=0 if request.mind is None else slots.get(request.mind, 0),
                    salt=f"{model.fingerprint}:{self.engine.weights}:{weights}:{mind}",
                    seed=randomness.seed(*request.stream_key),
                    max_tokens=sampling.max_new_tokens,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    stop_ids=stop_ids,
                )
            )
        # Tokens of each unfinished completion.
        lengths: dict[int, int] = {}
        self.meter.under_way = 0
        for number, written in self.engine.write(orders, weights):
            ended = self.ended(written.ids)
            self.meter.under_way += len(written.ids) - lengths.get(number, 0)
            lengths[number] = len(written.ids)
            if not (ended or written.finished):
                continue
            self.meter.under_way -= lengths.pop(number)
            written.finished = True
            reason: FinishReason = "stop" if ended else "length"
            self.cached_tokens += written.cached
            index = part[number]
            yield index, self.rollout(requests[index], written.ids, written.logprobs, reason, self._version)


def noisy_sites(population: Population, remedy: str = "use --backend hf") -> tuple[str, ...]:
    """The norms that minds of this population shift; none without noise.

    Args:
        remedy: what to do with a population whose minds are something else.

    Raises:
        UsageError: a population whose minds are something else.
    """
    if isinstance(population, NoPopulation):
        return ()
    if not isinstance(population, NormNoise):
        raise UsageError(f"vLLM knows the populations norm-noise and none, got {type(population).__name__}; {remedy}")
    if population.options.level != "sequence":
        raise UsageError(f'vLLM knows noise of level "sequence" only; {remedy} for "token"')
    if population.options.scope != "sequence":
        raise UsageError(f'vLLM knows noise of scope "sequence" only; {remedy} for "completion"')
    return population.sites
