"""Keys and values of the sequences that are being written, in slots that are reused.

Each layer has two buffers [slots, capacity, K, D]: a sequence owns a slot, its token at position p lies in column p.
Buffers grow by halves, a layer at a time, and no further than the longest sequence; nothing is concatenated for a new
token.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ttrl_pop.attention import Plan, bias_of, grouped
from ttrl_pop.packing import Pack

BLOCK = 32
"""Columns of the smallest buffer."""


class KeyValueCache:
    """Slots 0..slots-1, all empty at first, for sequences of at most `longest` tokens."""

    def __init__(self, slots: int, longest: int) -> None:
        self.slots = slots
        self.longest = longest
        self.capacity = min(BLOCK, longest)
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def reserve(self, columns: int) -> None:
        """Make room for sequences of `columns` tokens, at most `longest`."""
        if columns <= self.capacity:
            return
        self.capacity = min(self.longest, max(-(-columns // BLOCK) * BLOCK, self.capacity * 3 // 2))
        for layer, (keys, values) in self.layers.items():
            self.layers[layer] = (self._grown(keys), self._grown(values))

    def write(self, layer: int, places_N: Int[Tensor, "N"], keys_NKD: Tensor, values_NKD: Tensor) -> None:
        """Put token n at `places_N[n]` = slot · capacity + position."""
        for buffer, states in zip(self._buffers(layer, keys_NKD, values_NKD), (keys_NKD, values_NKD), strict=True):
            buffer.flatten(0, 1).index_copy_(0, places_N, states)

    def read(self, layer: int, slots: int, columns: int) -> tuple[Tensor, Tensor]:
        """Keys and values [slots, columns, K, D] of the first slots, as views."""
        keys, values = self.layers[layer]
        return keys[:slots, :columns], values[:slots, :columns]

    def move(self, sources: list[int], targets: list[int], columns: int) -> None:
        """Copy the first `columns` tokens of each source slot to the target slot beside it."""
        for buffers in self.layers.values():
            for buffer in buffers:
                buffer[targets, :columns] = buffer[sources, :columns]

    def _buffers(self, layer: int, keys_NKD: Tensor, values_NKD: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self.layers:
            self.layers[layer] = (self._empty(keys_NKD), self._empty(values_NKD))
        return self.layers[layer]

    def _empty(self, states_NKD: Tensor) -> Tensor:
        # Zeros: columns that nobody has written are masked, and 0 times NaN would still be NaN.
        return states_NKD.new_zeros(self.slots, self.capacity, *states_NKD.shape[1:])

    def _grown(self, old: Tensor) -> Tensor:
        new = old.new_zeros(self.slots, self.capacity, *old.shape[2:])
        new[:, : old.shape[1]] = old
        return new


class Prefill(Plan):
    """Reads prompts, and keeps what later tokens will see of them."""

    def __init__(
        self, plan: Plan, cache: KeyValueCache, tokens_K: Int[Tensor, "K"], places_K: Int[Tensor, "K"]
    ) -> None:
        """Token `tokens_K[k]` of the forward goes to `places_K[k]` of the cache."""
        self.plan = plan
        self.cache = cache
        self.tokens_K = tokens_K
        self.places_K = places_K

    def attend(
        self,
        layer: int,
        queries_NHD: Float[Tensor, "N H D"],
        keys_NKD: Float[Tensor, "N K D"],
        values_NKD: Float[Tensor, "N K D"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "N H D"]:
        kept = (states.index_select(0, self.tokens_K) for states in (keys_NKD, values_NKD))
        self.cache.write(layer, self.places_K, *kept)
        return self.plan.attend(layer, queries_NHD, keys_NKD, values_NKD, scale, window)


class Decode(Plan):
    """One new token for each of the first N slots, which sees its slot up to itself."""

    def __init__(self, cache: KeyValueCache, positions_N: Int[Tensor, "N"], columns: int, even: bool) -> None:
        """`columns`: largest position + 1. `even`: whether all positions are equal."""
        self.cache = cache
        self.positions_N = positions_N
        self.columns = columns
        self.even = even
        slots = torch.arange(len(positions_N), device=positions_N.device)
        self.places_N = slots * cache.capacity + positions_N
        self.biases: dict[int | None, Tensor | None] = {}

    def attend(
        self,
        layer: int,
        queries_NHD: Float[Tensor, "N H D"],
        keys_NKD: Float[Tensor, "N K D"],
        values_NKD: Float[Tensor, "N K D"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "N H D"]:
        self.cache.write(layer, self.places_N, keys_NKD, values_NKD)
        keys, values = self.cache.read(layer, len(queries_NHD), self.columns)
        bias = self._bias(window, queries_NHD)
        return grouped(queries_NHD[:, None], keys, values, scale, bias, is_causal=False)[:, 0]

    def _bias(self, window: int | None, like: Tensor) -> Float[Tensor, "N 1 1 S"] | None:
        if window not in self.biases:
            if self.even and (window is None or self.columns <= window):
                self.biases[window] = None
            else:
                behind = self.positions_N[:, None] - torch.arange(self.columns, device=self.positions_N.device)
                seen = behind >= 0 if window is None else (behind >= 0) & (behind < window)
                self.biases[window] = bias_of(seen, like)[:, None, None]
        return self.biases[window]


def prefill(packed: Pack, cache: KeyValueCache, slots: Sequence[range]) -> Pack:
    """`packed` prompts, each of which is kept in all of its `slots`."""
    stems = [[*chain(*pieces)] for pieces in packed.stems]
    cache.reserve(max(len(stem) for stem in stems))
    tokens: list[int] = []
    places: list[int] = []
    for stem, owners in zip(stems, slots, strict=True):
        for slot in owners:
            tokens += stem
            places += range(slot * cache.capacity, slot * cache.capacity + len(stem))
    device = packed.ids_N.device
    plan = Prefill(packed.plan, cache, torch.tensor(tokens, device=device), torch.tensor(places, device=device))
    return replace(packed, plan=plan)
