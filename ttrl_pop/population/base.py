"""The interface of a population, and the population without noise.

A population owns what sets the minds of one model apart. It is one file: its `Options`, the parameters and hooks that
it adds in `attach`, and three methods more: `embody` minds in the tokens of a forward, `restart`, and `kl_to_prior`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, SupportsIndex, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ttrl_pop import randomness
from ttrl_pop.config import Section
from ttrl_pop.types import Metrics, Mind

Lack: TypeAlias = Literal["scale", "fit"]
"""What a population can be without until it has met the model: the one number of `set_scale`, or fitted parameters."""

MEAN = Mind(seed=0)
"""The mean mind: the population's mean, without noise. `spawn` never returns it."""


class Population(nn.Module, ABC):
    """Trainable parameters shared by all minds, and the hooks by which a mind enters the forward pass."""

    Options: ClassVar[type[Section]]

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options

    @property
    def lacks(self) -> Lack | None:
        """What has to be found on the model before minds can be embodied (`ttrl_pop.fit`); None: nothing."""
        return None

    def set_scale(self, sigma: float) -> None:
        """Make `sigma` the standard deviation of the prior and of every mind's noise."""
        raise ValueError(f"population {type(self).__name__} has no scale to set to {sigma}")

    @abstractmethod
    def attach(self, network: nn.Module) -> None:
        """Add parameters and hooks to a causal language model. Called once, before an adapter renames modules."""

    def settle(self, network: nn.Module) -> None:
        """Add what has to stand behind an adapter, such as hooks on the linear layers that it wraps. Called once, when
        the network is complete."""
        return

    @abstractmethod
    def restart(self) -> None:
        """Put the trained parameters back to where training began, by what `state_dict` holds."""

    def spawn(self, run_seed: int, step: int, count: int) -> tuple[Mind, ...]:
        """The `count` minds of a step, a pure function of its arguments."""
        return spawned(run_seed, step, count)

    @abstractmethod
    def embody(
        self, minds_M: Sequence[Mind], mind_N: Int[Tensor, "N"], positions_N: Int[Tensor, "N"]
    ) -> AbstractContextManager[None]:
        """While active, token n of a forward [1, N] is read by mind `minds_M[mind_N[n]]`. Outside, the model is the
        base model.

        The context must span the backward pass where activations are recomputed.

        Args:
            minds_M: different minds; `MEAN` is the mean mind.
            positions_N: number of each token in its sequence, from 0; only populations whose noise differs between
                tokens read it.
        """

    @abstractmethod
    def kl_to_prior(self) -> Float[Tensor, ""]:
        """KL(population ‖ prior) in nats per dimension."""

    def decay(self) -> bool:
        """End a step: change the parameters as they do with time, not by learning. Whether any has changed."""
        return False

    def reader(self, mind: Mind) -> Mind:
        """Who reads the prompt for this mind. Minds with one reader share its cache."""
        return mind

    def held(self) -> object:
        """What the last forward has read beside parameters and buffers, and a later one may read again: an engine that
        records its decode steps as CUDA graphs keeps it alive, as a record reads the same memory each time."""
        return None

    def metrics(self) -> Metrics:
        """Figures for metrics.jsonl, keyed `population/...`."""
        return {}


def spawned(run_seed: SupportsIndex, step: SupportsIndex, count: int) -> tuple[Mind, ...]:
    """The `count` minds of a step, whatever population they belong to."""
    return tuple(Mind(randomness.seed("mind", run_seed, step, m)) for m in range(count))


class NoPopulation(Population):
    """The base model alone: minds differ by what they sample, not by what they are. For baselines."""

    class Options(Section):
        pass

    def attach(self, network: nn.Module) -> None:
        return

    def restart(self) -> None:
        return

    def embody(
        self, minds_M: Sequence[Mind], mind_N: Int[Tensor, "N"], positions_N: Int[Tensor, "N"]
    ) -> AbstractContextManager[None]:
        return nullcontext()

    def kl_to_prior(self) -> Float[Tensor, ""]:
        return torch.zeros(())

    def reader(self, mind: Mind) -> Mind:
        return MEAN
