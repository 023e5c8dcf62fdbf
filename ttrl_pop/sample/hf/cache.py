"""Keys and values of the sequences that are being written, in slots that are reused.

Each layer has two buffers [slots, K, longest, D]: a sequence owns a slot, its token at position p lies in column p.
Nothing is copied or concatenated for a new token. On a CPU only what has been written takes memory.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ttrl_pop.kernels import loops
from ttrl_pop.kernels.memory import transfer, zeros
from ttrl_pop.kernels.norms import has_kernels
from ttrl_pop.packing.attention import Plan, bias_of, single
from ttrl_pop.packing.pack import Pack


class CacheCells:
    """Cells of a cache, one for each of N tokens: its slot and its position there."""

    def __init__(self, slots_N: Int[Tensor, "N"], positions_N: Int[Tensor, "N"]) -> None:
        self.slots_N = slots_N
        self.positions_N = positions_N
        self._rows: dict[tuple[int, int], Tensor] = {}

    def rows(self, heads: int, longest: int) -> Int[Tensor, "R"]:
        """Rows of the tokens in a buffer as a matrix [slots · K · longest, D]: all heads of a token, token by token.
        Made once for all layers."""
        if (heads, longest) not in self._rows:
            head = torch.arange(heads, device=self.slots_N.device)
            rows_NK = (self.slots_N[:, None] * heads + head) * longest + self.positions_N[:, None]
            self._rows[heads, longest] = rows_NK.flatten()
        return self._rows[heads, longest]


class KeyValueCache:
    """Keys and values of all layers in slots 0..slots-1, all empty at first, of at most `longest` tokens each."""

    def __init__(self, slots: int, longest: int) -> None:
        self.slots = slots
        self.longest = longest
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, cells: CacheCells, keys_NKD: Tensor, values_NKD: Tensor) -> None:
        """Put keys and values of each token into its cell."""
        rows = cells.rows(keys_NKD.shape[1], self.longest)
        for buffer, states in zip(self.buffers(layer, keys_NKD, values_NKD), (keys_NKD, values_NKD), strict=True):
            buffer.flatten(0, 2).index_copy_(0, rows, states.flatten(0, 1))

    def read(self, layer: int, slots: int, columns: int) -> tuple[Tensor, Tensor]:
        """Keys and values [slots, K, columns, D] of the first slots, as views."""
        keys, values = self.layers[layer]
        return keys[:slots, :, :columns], values[:slots, :, :columns]

    def move(self, sources: list[int], targets: list[int], columns: int) -> None:
        """Copy the first `columns` tokens of each source slot to the target slot beside it."""
        buffers = [buffer for both in self.layers.values() for buffer in both]
        if not buffers:
            return
        # Once for all of them: a GPU would be stopped for each list.
        sources_M, targets_M = (transfer(slots, torch.long, buffers[0].device) for slots in (sources, targets))
        for buffer in buffers:
            buffer[targets_M, :, :columns] = buffer[sources_M, :, :columns]

    def buffers(self, layer: int, keys_NKD: Tensor, values_NKD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [slots, K, longest, D] of a layer, which are made where it has none yet."""
        if layer not in self.layers:
            self.layers[layer] = (self._empty(keys_NKD), self._empty(values_NKD))
        return self.layers[layer]

    def _empty(self, states_NKD: Tensor) -> Tensor:
        # Zeros: columns that nobody has written are masked, and 0 times NaN would still be NaN.
        heads, width = states_NKD.shape[1:]
        return zeros((self.slots, heads, self.longest, width), states_NKD.dtype, states_NKD.device)


class Prefill(Plan):
    """Attention of prompts, which keeps what later tokens will see of them."""

    def __init__(self, plan: Plan, cache: KeyValueCache, tokens_T: Int[Tensor, "T"], cells: CacheCells) -> None:
        """Token `tokens_T[t]` of the forward goes to cell t."""
        self.plan = plan
        self.cache = cache
        self.tokens_T = tokens_T
        self.cells = cells

    def attend(
        self,
        layer: int,
        queries_NHD: Float[Tensor, "N H D"],
        keys_NKD: Float[Tensor, "N K D"],
        values_NKD: Float[Tensor, "N K D"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "N H D"]:
        kept = (states.index_select(0, self.tokens_T) for states in (keys_NKD, values_NKD))
        self.cache.write(layer, self.cells, *kept)
        return self.plan.attend(layer, queries_NHD, keys_NKD, values_NKD, scale, window)


class Decode(Plan):
    """Attention of one new token in each of the first N slots, which sees its slot up to itself."""

    def __init__(self, cache: KeyValueCache, positions_N: Int[Tensor, "N"], columns: int, even: bool) -> None:
        """`columns`: largest position + 1. `even`: whether all positions are equal."""
        self.cache = cache
        self.positions_N = positions_N
        self.columns = columns
        self.even = even
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
        if keys_NKD.shape == values_NKD.shape:
            given = (queries_NHD, keys_NKD, values_NKD, self.cache.buffers(layer, keys_NKD, values_NKD))
            if loops.are_for(queries_NHD) and keys_NKD.dtype == values_NKD.dtype == queries_NHD.dtype:
                return loops.attend_newest(*given, self.positions_N, self.columns, scale, window)
            if has_kernels(queries_NHD):
                from ttrl_pop.kernels.attention_kernels import attend_newest

                return attend_newest(*given, self.positions_N, scale, window)
        self.cache.write(layer, self._cells, keys_NKD, values_NKD)
        keys_NKSD, values_NKSD = self.cache.read(layer, len(queries_NHD), self.columns)
        return single(queries_NHD, keys_NKSD, values_NKSD, scale, self._bias(window, queries_NHD))

    @cached_property
    def _cells(self) -> CacheCells:
        """The newest cell of each slot; a kernel finds it by itself."""
        return CacheCells(torch.arange(len(self.positions_N), device=self.positions_N.device), self.positions_N)

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
    """`packed` prompts whose reading keeps each of them in all of its `slots`."""
    stems = [[*chain(*pieces)] for pieces in packed.stems]
    tokens: list[int] = []
    owners: list[int] = []
    positions: list[int] = []
    for stem, kept_in in zip(stems, slots, strict=True):
        for slot in kept_in:
            tokens += stem
            owners += [slot] * len(stem)
            positions += range(len(stem))
    tokens_T, owners_T, positions_T = (
        transfer(values, torch.long, packed.ids_N.device) for values in (tokens, owners, positions)
    )
    plan = Prefill(packed.plan, cache, tokens_T, CacheCells(owners_T, positions_T))
    return replace(packed, plan=plan)
