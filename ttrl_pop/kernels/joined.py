"""Linear layers that read the same states, multiplied as one: queries, keys and values of an attention, gates and what
they open for. At the width of a decode step a small product costs more than its share of a large one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ttrl_pop.kernels.matmul import LaidOutWeight, product

MOST_ROWS = 256
"""Rows up to which layers are multiplied as one. More gain nothing, and had better have products that lie by
themselves: together they cost 5 % of the learner's time (dev/LOG.md)."""


class Joined:
    """Weights that lie one behind another in one that is laid out.

    Asked for the product of the first, it makes all of them; the others are taken from there when they are asked for
    with the same states. `up_to_date`, set once they are known, are called before: they bring each weight up to date.
    """

    def __init__(
        self, whole: LaidOutWeight, outputs: Sequence[int], biases: Sequence[Float[Tensor, "_"] | None]
    ) -> None:
        """
        Args:
            outputs: rows of each weight.
            biases: of each layer; they stay as they are.
        """
        self.whole = whole
        self.up_to_date: Sequence[Callable[[], object]] = ()
        # As `data` each has a version of its own: one that is made anew leaves what was kept of the others as it was.
        self.parts = tuple(
            Part(self, place, weight.data) for place, weight in enumerate(torch.split(whole.weight, [*outputs]))
        )
        self._versions: list[int] = []
        """Versions of the weights that the last products were made with."""
        self._outputs = [*outputs]
        weight = whole.weight
        given = [weight.new_zeros(rows) if b is None else b for rows, b in zip(outputs, biases, strict=True)]
        self._bias = None if all(bias is None for bias in biases) else torch.cat(given)
        self._made: _Made | None = None

    def take(self, x: Float[Tensor, "N I"], place: int) -> Float[Tensor, "N O"] | None:
        """The product of the weight at a place, in rows that lie apart; None where it has not been made with others."""
        made = self._made
        if place == 0:
            for update in self.up_to_date:
                update()
            versions = [part.weight._version for part in self.parts]
            if versions != self._versions:
                self.whole.renew()
                self._versions = versions
            products = torch.split(self.whole.times(x, self._bias), self._outputs, dim=-1)
            self._made = made = _Made(x, _version(x), dict(enumerate(products)))
        elif made is None or not made.are_of(x) or self._versions[place] != self.parts[place].weight._version:
            return None
        y = made.waiting.pop(place, None)
        if not made.waiting:
            self._made = None
        return y


@dataclass(frozen=True, slots=True)
class _Made:
    """Products of all weights with some states."""

    x: Tensor
    """The states. While they are held, their memory is theirs."""
    version: int
    """Version of the states when they were multiplied."""
    waiting: dict[int, Tensor]
    """Products that have not been asked for yet, by place."""

    def are_of(self, x: Tensor) -> bool:
        """Whether `x` are those states, by whatever name."""
        return (
            x.data_ptr() == self.x.data_ptr()
            and _version(x) == self.version
            and x.shape == self.x.shape
            and x.stride() == self.x.stride()
        )


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


class Part:
    """One of the weights that are joined."""

    def __init__(self, joined: Joined, place: int, weight: Float[Tensor, "O I"]) -> None:
        self.weight = weight
        self._joined, self._place = joined, place

    def times(self, x: Float[Tensor, "N I"], bias: Float[Tensor, "O"] | None) -> Float[Tensor, "N O"]:
        """x·Wᵀ + b, without gradient."""
        x = x.detach()
        y = self._joined.take(x, self._place) if len(x) <= MOST_ROWS else None
        return product(x, self.weight, bias) if y is None else y
