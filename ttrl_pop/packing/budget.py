"""How much a forward may hold, in tokens, and how much of that its trees take."""

from collections.abc import Iterable

import torch

from ttrl_pop.packing.radix import KEYS, alike
from ttrl_pop.types import Mind

PREFILL_TOKENS = {"cpu": 2048}
"""Prompt tokens of one forward, by type of device; `ON_GPU` on others."""
LEARNER_TOKENS = {"cpu": 1024}
"""Tokens of one forward of the learner, by type of device; `ON_GPU` on others."""
ON_GPU = 2**14
"""A forward of fewer tokens is over before a GPU has been told of it."""


def prefill_tokens(given: int | None, device: torch.device) -> int:
    """Prompt tokens that one forward reads at most: what was given, or what suits the device."""
    return given or PREFILL_TOKENS.get(device.type, ON_GPU)


def learner_tokens(given: int | None, device: torch.device) -> int:
    """Tokens that one forward of the learner holds at most: what was given, or what suits the device."""
    return given or LEARNER_TOKENS.get(device.type, ON_GPU)


class Budget:
    """Tokens that a forward may hold, taken by the trees that are put into it. Keys that are copied count as tokens,
    `KEYS` for one."""

    def __init__(self, tokens: int, prompts: Iterable[tuple[int, ...]]) -> None:
        """`prompts`: all that may be put in; what they begin with alike counts once for each reader."""
        self.tokens = tokens
        self.shared = alike([*dict.fromkeys(prompts)])
        """Tokens that all prompts begin with and that are read once."""
        self.clear()

    def clear(self) -> None:
        """Begin the next forward, with nothing in it."""
        self.taken = 0
        self.trees: set[tuple[tuple[int, ...], Mind | None]] = set()
        self.readers: set[Mind | None] = set()

    def fits(self, prompt_ids: tuple[int, ...], reader: Mind | None, own: int = 0) -> bool:
        """Whether a branch of `own` tokens can join the tree of this prompt and reader."""
        return self._taken_with(prompt_ids, reader, own) <= self.tokens

    def take(self, prompt_ids: tuple[int, ...], reader: Mind | None, own: int = 0) -> None:
        """Put a branch of `own` tokens into the tree of this prompt and reader."""
        self.taken = self._taken_with(prompt_ids, reader, own)
        self.trees.add((prompt_ids, reader))
        self.readers.add(reader)

    def _taken_with(self, prompt_ids: tuple[int, ...], reader: Mind | None, own: int) -> int:
        reach = len(prompt_ids) + own
        if (prompt_ids, reader) in self.trees:
            return self.taken + own + reach // KEYS
        if self.shared and reader in self.readers:
            return self.taken + reach - self.shared + reach // KEYS
        return self.taken + reach
