"""Products with a weight that is laid out for them once.

A float32 product on a CPU first copies its weight into the order in which it is read. At the width of a decode step
that is a third of the time. MKL can be handed a weight in that order; torch has this for its compiler, under names that
it does not promise to keep, so they are tried before they are used.
"""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

PACKED_ROWS = 256
"""For which the order is chosen. Products of any number of rows are right, and as fast as by an order for them."""


class PackedWeight:
    """A weight and a copy of it in MKL's order, which is made anew once the weight has been changed in place."""

    def __init__(self, weight: Float[Tensor, "O I"]) -> None:
        self.weight = weight
        self._packed: Tensor | None = None
        self._packed_at = -1

    def times(self, x: Float[Tensor, "*B I"], bias: Float[Tensor, "O"] | None) -> Float[Tensor, "*B O"]:
        """x·Wᵀ + b, without gradient."""
        if self._packed is None or self.weight._version != self._packed_at:
            # The old copy goes first, so that there are never two.
            self._packed = None
            self._packed = _mkl()._mkl_reorder_linear_weight(self.weight.detach(), PACKED_ROWS)
            self._packed_at = self.weight._version
        return _product(x, self._packed, self.weight, bias)


def can_be_packed(weight: Tensor) -> bool:
    """Whether `PackedWeight` is there for a weight of this type, on this device."""
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and _is_available()


def _product(x: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.numel() // x.shape[-1]
    # Of `weight` it reads the shape alone, as the last number says that the order was chosen for these rows.
    y: Tensor = _mkl()._mkl_linear(x.detach(), packed, weight.detach(), bias, rows)
    return y


def _mkl() -> Any:
    return torch.ops.mkl


@cache
def _is_available() -> bool:
    if not hasattr(_mkl(), "_mkl_linear"):
        return False
    weight, bias = torch.linspace(-1, 2, 33 * 17).view(33, 17), torch.linspace(0, 1, 33)
    x = torch.linspace(-3, 1, 300 * 17).view(300, 17)
    packed = PackedWeight(weight)
    try:
        pairs = [(packed.times(x[:rows], bias), nn.functional.linear(x[:rows], weight, bias)) for rows in (1, 5, 300)]
    except (TypeError, RuntimeError):
        # Of another torch, in which the operation takes something else.
        return False
    return all(torch.allclose(got, expected, rtol=1e-5, atol=1e-5) for got, expected in pairs)
