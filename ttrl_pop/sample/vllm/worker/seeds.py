"""A table of minds that draws each when its seed first comes, for clients that know seeds alone."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from ttrl_pop.population.base import MEAN
from ttrl_pop.population.norm_noise import NormNoise
from ttrl_pop.population.options import NormNoiseOptions
from ttrl_pop.sample.vllm.worker.norms import NOBODY, Minds
from ttrl_pop.types import Mind


class SeededMinds(Minds):
    """A table whose rows are the minds that were last read through, each drawn when its seed first comes."""

    def __init__(
        self,
        model: nn.Module,
        noise: NormNoise,
        slots: int,
        tokens: int,
        device: torch.device,
    ) -> None:
        """
        Args:
            noise: attached to a network of the same sites; its own values of mu and sigma count.
            slots: the most minds of one batch.
        """
        super().__init__(model, noise.sites, slots, tokens, device)
        self.noise = noise
        self._slot: OrderedDict[int, int] = OrderedDict()
        """Slot of each seed, the one that was least lately read first."""

    def tag(self, slots_T: NDArray[np.int64]) -> None:
        """Set the mind of each token of the coming batch by its seed."""
        seeds, place_T = np.unique(slots_T, return_inverse=True)
        self._draw([int(seed) for seed in seeds if seed not in (NOBODY, MEAN.seed)])
        slots = [self._slot.get(int(seed), 0) for seed in seeds]
        super().tag(np.array(slots, np.int64)[place_T])

    def clear(self) -> None:
        super().clear()
        self._slot.clear()

    def _draw(self, seeds: Sequence[int]) -> None:
        """Give each of `seeds` a slot, in the place of what is not among them."""
        for seed in seeds:
            if seed in self._slot:
                self._slot.move_to_end(seed)
        new = [seed for seed in seeds if seed not in self._slot]
        room = self.table.shape[1] - 1
        for seed in new:
            slot = len(self._slot) + 1 if len(self._slot) < room else self._slot.popitem(last=False)[1]
            self._slot[seed] = slot
        if new:
            z_SMD: Tensor = self.noise.offsets([Mind(seed) for seed in new])
            self.table[:, [self._slot[seed] for seed in new]] = z_SMD.to(self.table)


def noise_of(config: Any, sigma: float) -> NormNoise:
    """The noise of minds for models of `config`, without a model of it in memory."""
    noise = NormNoise(NormNoiseOptions(sigma=sigma))
    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(config)
    noise.attach(network)
    noise.to_empty(device="cpu")
    noise.set_scale(sigma)
    return noise
