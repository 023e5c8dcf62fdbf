"""Linear layers that read the same states, multiplied as one: queries, keys and values of an attention, gates and what
they open for. At the width of a decode step a small product costs more than its share of a large one."""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from ttrl_pop.kernels.loops import Columns
from ttrl_pop.kernels.matmul import LaidOutWeight


class Joined:
    """Weights that lie one behind another in one that is laid out."""

    def __init__(
        self, whole: LaidOutWeight, outputs: Sequence[int], biases: Sequence[Float[Tensor, "_"] | None]
    ) -> None:
        """
        Args:
            outputs: rows of each weight.
            biases: of each layer; they stay as they are.
        """
        self.whole = whole
        self._places = [*zip(accumulate(outputs, initial=0), outputs, strict=False)]
        # As `data` each has a version of its own: one that is made anew leaves what was kept of the others as it was.
        self.weights = tuple(weight.data for weight in torch.split(whole.weight, [*outputs]))
        self.up_to_date: Sequence[Callable[[], object]] = ()
        """Called before a product: they bring each weight up to date."""
        self._versions: list[int] = []
        """Versions of the weights that the last products were made with."""
        weight = whole.weight
        given = [weight.new_zeros(rows) if b is None else b for rows, b in zip(outputs, biases, strict=True)]
        self._bias = None if all(bias is None for bias in biases) else torch.cat(given)

    def times(self, x: Float[Tensor, "N I"]) -> list[Columns]:
        """x·Wᵀ + b of each, without gradient."""
        for update in self.up_to_date:
            update()
        versions = [weight._version for weight in self.weights]
        if versions != self._versions:
            self.whole.renew()
            self._versions = versions
        y = self.whole.times(x, self._bias)
        return [Columns(y, first, rows) for first, rows in self._places]
