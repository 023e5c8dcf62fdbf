"""How many tokens a forward would hold."""

from collections.abc import Iterable

from ttrl_pop.packing.radix import KEYS, alike
from ttrl_pop.types import Mind


class Load:
    """Tokens of a forward while trees are put into it. Keys that are copied count as tokens, `KEYS` for one."""

    def __init__(self, prompts: Iterable[tuple[int, ...]]) -> None:
        """`prompts`: all that may be put in; what they begin with alike counts once for each reader."""
        self.shared = alike([*dict.fromkeys(prompts)])
        self.clear()

    def clear(self) -> None:
        self.tokens = 0
        self.trees: set[tuple[tuple[int, ...], Mind | None]] = set()
        self.readers: set[Mind | None] = set()

    def with_more(self, prompt_ids: tuple[int, ...], reader: Mind | None, own: int = 0) -> int:
        """Tokens once a branch of `own` tokens has joined the tree of this prompt and reader."""
        reach = len(prompt_ids) + own
        if (prompt_ids, reader) in self.trees:
            return self.tokens + own + reach // KEYS
        if self.shared and reader in self.readers:
            return self.tokens + reach - self.shared + reach // KEYS
        return self.tokens + reach

    def add(self, prompt_ids: tuple[int, ...], reader: Mind | None, own: int = 0) -> None:
        self.tokens = self.with_more(prompt_ids, reader, own)
        self.trees.add((prompt_ids, reader))
        self.readers.add(reader)
