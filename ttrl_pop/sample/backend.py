"""What a rollout engine is: requests in, rollouts out."""

import copy
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from ttrl_pop.config import SamplingConfig, Section
from ttrl_pop.model.policy import Policy
from ttrl_pop.model.prompts import decode, stop_ids
from ttrl_pop.population.base import MEAN
from ttrl_pop.sample.meter import Meter
from ttrl_pop.types import FinishReason, Mind, Rollout

Weights = Literal["policy", "base"]
"""Whose weights write: the policy's as they are now, or the base model's, for which the adapter is off."""


@dataclass(frozen=True, slots=True)
class Request:
    """One rollout to write."""

    prompt_ids: tuple[int, ...]
    mind: Mind | None
    """None: no mind (z = 0); the rollout carries the mean mind."""
    stream_key: tuple[int | str, ...]
    """Key of the stream of its token choices: equal key, mind, prompt and weights give the same rollout."""


class NoOptions(Section):
    """An empty table `backend_options`, for an engine that has nothing to set."""


class Backend(ABC):
    """A rollout engine for one policy."""

    Options: ClassVar[type[Section]] = NoOptions
    """Model of the table `backend_options`."""

    def __init__(self, policy: Policy, sampling: SamplingConfig, options: Any = None) -> None:
        """Make the engine ready for `policy`.

        Args:
            options: an instance of `Options`; None for its defaults.

        Raises:
            UsageError: a stop string could never be found.
        """
        if sampling.stop:
            stop_ids(policy.model.tokenizer, sampling.stop)
        self.policy = policy
        self.sampling = sampling
        self.options = self.Options() if options is None else options
        self.meter = Meter()
        """What has been written so far; `sample` counts rollouts, and the engine what is under way, if it can."""

    @abstractmethod
    def rollouts(self, requests: Sequence[Request], weights: Weights = "policy") -> Iterator[tuple[int, Rollout]]:
        """Yield (index into `requests`, rollout) as they finish, each index once, each with the version of the
        policy that wrote it. What a rollout says does not depend on which others are in the batch.

        An engine that shares the policy's network may have it under other weights until the iterator has ended: take
        all of it, or close it, before the policy is used for anything else.
        """

    def refresh(self) -> None:
        """Take over the policy's weights after an update. An engine that shares them has nothing to do."""
        return

    def limits(self) -> dict[str, int]:
        """What this engine has lowered since its start because memory ran out, by name, for a checkpoint: shapes of
        batches follow from it, and rounding from them."""
        return {}

    def restore_limits(self, limits: Mapping[str, int]) -> None:
        """Go on as an engine whose `limits()` these were."""
        return

    def with_sampling(self, sampling: SamplingConfig) -> "Backend":
        """The same engine under other settings, for use before this one or after it."""
        other = copy.copy(self)
        other.sampling = sampling
        return other

    def close(self) -> None:
        """Give back what the engine holds outside of this process's own memory. It writes nothing afterwards."""
        return

    def learner_defaults(self) -> dict[str, Any]:
        """Values for settings of `learn` that were left open (None), by name: what this engine's log-probabilities
        call for. An engine that shares the learner's weights and code calls for nothing."""
        return {}

    def reader(self, request: Request) -> Mind | None:
        """Who reads its prompt: of requests with one reader and one prompt it is read once, where the engine can."""
        return None if request.mind is None else self.policy.population.reader(request.mind)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a completion: the model's own, and stop strings that are special tokens."""
        return self.policy.model.eos_ids | stop_ids(self.policy.model.tokenizer, self.sampling.stop)

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether a completion of these tokens has come to its end; its beginnings had not."""
        if not self.sampling.stop:
            return ids[-1] in self.policy.model.eos_ids
        if ids[-1] in self.stop_ids:
            return True
        # A stop string of n bytes lies in the last n tokens; some more complete a character cut at the edge.
        tail = max(len(stop.encode()) for stop in self.sampling.stop) + 4
        text = decode(self.policy.model.tokenizer, ids[-tail:])
        return any(stop in text for stop in self.sampling.stop)

    def rollout(
        self, request: Request, ids: Sequence[int], logprobs: Sequence[float], reason: FinishReason, version: int
    ) -> Rollout:
        """A completion as the rollout of `request`, its text cut before the first stop string."""
        text = decode(self.policy.model.tokenizer, ids)
        cuts = [text.index(stop) for stop in self.sampling.stop if stop in text]
        return Rollout(
            mind=request.mind or MEAN,
            prompt_ids=request.prompt_ids,
            completion_ids=tuple(ids),
            logprobs=tuple(logprobs),
            text=text[: min(cuts)] if cuts else text,
            finish_reason=reason,
            policy_version=version,
        )


def backend_name(name: str, device: str) -> str:
    """`vllm` for `auto` where it is installed, a CUDA GPU is there and `device` does not say otherwise, else `hf`; any
    other name as it is."""
    if name != "auto":
        return name
    on_gpu = torch.cuda.is_available() and (device == "auto" or torch.device(device).type == "cuda")
    return "vllm" if on_gpu and importlib.util.find_spec("vllm") is not None else "hf"
