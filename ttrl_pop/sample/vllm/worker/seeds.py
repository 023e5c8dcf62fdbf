"""A table of minds that draws each when a request first names it, for clients that know seeds and names alone."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import nn

from ttrl_pop.population.norm_noise import NormNoise
from ttrl_pop.population.options import NormNoiseOptions
from ttrl_pop.sample.vllm.worker.norms import NOBODY, Minds
from ttrl_pop.types import Mind


class SeededMinds(Minds):
    """A table whose rows are the minds that were last read through, each drawn when a request first names it.

    A request names a mind by `extra_args = {"mind": SEED, "population": NAME}`; without a population, that of the
    server.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[str],
        slots: int,
        tokens: int,
        device: torch.device,
        population: Callable[[str], NormNoise],
    ) -> None:
        """
        Args:
            sites: all norms that any population may shift.
            slots: the most minds of one batch.
            population: the population of a name, "" where a request has none; asked for every mind that is drawn.
        """
        super().__init__(model, sites, slots, tokens, device)
        self.population = population
        self._site = {name: index for index, name in enumerate(sites)}
        self._number: dict[tuple[str, int], int] = {}
        """Number of each mind that was named so far, from 1, by population and seed."""
        self._named: list[tuple[str, int]] = []
        self._slot: OrderedDict[int, int] = OrderedDict()
        """Slot of each mind in the table by its number, the one that was least lately read first."""

    def owner(self, extra: dict[str, Any] | None) -> int:
        """The number of the mind that a request names."""
        if extra is None or "mind" not in extra:
            return NOBODY
        which = (str(extra.get("population", "")), int(extra["mind"]))
        if which not in self._number:
            self._named.append(which)
            self._number[which] = len(self._named)
        return self._number[which]

    def tag(self, slots_T: NDArray[np.int64]) -> None:
        """Set the mind of each token of the coming batch by its number."""
        numbers, place_T = np.unique(slots_T, return_inverse=True)
        self._draw([int(number) for number in numbers if number != NOBODY])
        slots = [self._slot.get(int(number), 0) for number in numbers]
        super().tag(np.array(slots, np.int64)[place_T])

    def clear(self) -> None:
        super().clear()
        self._slot.clear()

    def _draw(self, numbers: Sequence[int]) -> None:
        """Give each of these minds a slot, in the place of what is not among them."""
        for number in numbers:
            if number in self._slot:
                self._slot.move_to_end(number)
        room = self.table.shape[1] - 1
        for number in [number for number in numbers if number not in self._slot]:
            slot = len(self._slot) + 1 if len(self._slot) < room else self._slot.popitem(last=False)[1]
            self._slot[number] = slot
            name, seed = self._named[number - 1]
            # vLLM draws in its inference mode, whose tensors a population does not know.
            with torch.inference_mode(False):
                noise = self.population(name)
                z_SD = noise.offsets([Mind(seed)])[:, 0]
            self.table[:, slot] = 0
            self.table[[self._site[site] for site in noise.sites], slot] = z_SD.to(self.table)


def noise_of(config: Any, sigma: float) -> NormNoise:
    """The noise of minds for models of `config`, without a model of it in memory."""
    noise = NormNoise(NormNoiseOptions(sigma=sigma))
    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(config)
    noise.attach(network)
    noise.to_empty(device="cpu")
    noise.set_scale(sigma)
    return noise
