"""The interface of a rollout engine."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ttrl_pop.config import SamplingConfig
from ttrl_pop.policy import Policy
from ttrl_pop.types import Mind, Rollout


@dataclass(frozen=True, slots=True)
class Request:
    """One rollout to write."""

    prompt_ids: tuple[int, ...]
    mind: Mind | None
    """None: the base model without a mind (z = 0); its rollouts carry the mean mind."""
    stream_key: tuple[int | str, ...]
    """Key of the stream of its token choices; two requests with equal key, mind and prompt are the same rollout."""


class Backend(ABC):
    """Writes rollouts from the policy's current weights."""

    def __init__(self, policy: Policy, sampling: SamplingConfig) -> None:
        self.policy = policy
        self.sampling = sampling

    @abstractmethod
    def rollouts(self, requests: Sequence[Request]) -> Iterator[tuple[int, Rollout]]:
        """Yield (index into `requests`, rollout) as they finish, each index once, each with the version of the
        policy that wrote it. What a rollout says does not depend on which others are in the batch."""

    def refresh(self) -> None:
        """Take over the policy's weights after an update. An engine that shares them has nothing to do."""
        return
