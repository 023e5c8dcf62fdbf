"""What sequences of one mind begin with alike is read once: a radix tree of runs, pieces of a packed row."""

from collections.abc import Sequence
from dataclasses import dataclass

from ttrl_pop.types import Mind

ALIKE = 0.125
"""Smallest common beginning, as a share of the longest sequence, that is worth reading once. For less, the masks of
what follows take longer."""

KEYS = 16
"""Keys that take about as much memory as one token does in the layers. A run's keys beyond itself are copied for it."""

PARTING_KEYS = 32
"""Keys that may be copied for each token that is saved where sequences part behind their beginning. On a CPU some 160
take the time of a token, but twice `KEYS` are as much memory as is given for it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The first tokens of a run."""

    run: "Run"
    length: int

    @property
    def tokens(self) -> range:
        return self.run.tokens[: self.length]


@dataclass(eq=False, slots=True)
class Run:
    """A contiguous piece of the row."""

    ids: tuple[int, ...]
    mind: Mind | None
    before: tuple[Piece, ...] = ()
    """What comes before it in its own sequences, from their first token on."""
    start: int = 0
    """Where in the row it begins."""

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def context(self) -> int:
        """Number of tokens before it in its own sequences."""
        return sum(piece.length for piece in self.before)

    @property
    def reach(self) -> int:
        """Number of tokens up to its end in its own sequences."""
        return self.context + self.length

    @property
    def tokens(self) -> range:
        """Where its tokens are in the row."""
        return range(self.start, self.start + self.length)

    @property
    def positions(self) -> range:
        """Where its tokens are in its own sequences."""
        return range(self.context, self.reach)


NodeId = tuple[int, int | None]
"""Number of a tree, and that of its branch or None for its prompt."""


def grow(
    sequences: dict[NodeId, tuple[int, ...]], mind: Mind | None, before: tuple[Piece, ...], runs: list[Run]
) -> dict[NodeId, tuple[Piece, ...]]:
    """The pieces of each sequence, `before` among them; their runs are appended to `runs`. A radix tree, but for
    beginnings that are not worth a run of their own."""
    paths: dict[NodeId, tuple[Piece, ...]] = {}
    # Paths, how many tokens they hold, and the sequences that begin with them.
    waiting = [(before, 0, list(sequences))]
    while waiting:
        path, at, members = waiting.pop()
        paths |= {member: path for member in members if len(sequences[member]) == at}
        groups = _by_next(members, at, sequences)
        while groups:
            group = groups.pop()
            end, parting = _parting(group, at, sequences)
            children = _by_next(parting, end, sequences)
            if children and not _is_worth(
                path, end - at, [max(len(sequences[m]) for m in child) for child in children]
            ):
                # Those that end on the way go with any of the others.
                children[0] += [member for member in group if len(sequences[member]) <= end]
                groups += children
                continue
            longest = max(group, key=lambda member: len(sequences[member]))
            run = Run(sequences[longest][at:end], mind, path)
            runs.append(run)
            for member in group:
                if len(sequences[member]) <= end:
                    paths[member] = (*path, Piece(run, len(sequences[member]) - at))
            if parting:
                waiting.append(((*path, Piece(run, end - at)), end, parting))
    return paths


def _parting(group: list[NodeId], at: int, sequences: dict[NodeId, tuple[int, ...]]) -> tuple[int, list[NodeId]]:
    """Where the sequences part that agree in the token at `at`, and those that go on from there. Sequences that end
    earlier part from nobody."""
    end = at
    while group:
        low, high = min(sequences[m] for m in group), max(sequences[m] for m in group)
        shortest = min(len(sequences[m]) for m in group)
        end = next((i for i in range(end, shortest) if low[i] != high[i]), shortest)
        if end < shortest:
            break
        group = [member for member in group if len(sequences[member]) > end]
    return end, group


def _by_next(members: list[NodeId], at: int, sequences: dict[NodeId, tuple[int, ...]]) -> list[list[NodeId]]:
    """The members that go on from `at`, in groups of one next token."""
    groups: dict[int, list[NodeId]] = {}
    for member in members:
        if len(sequences[member]) > at:
            groups.setdefault(sequences[member][at], []).append(member)
    return list(groups.values())


def _is_worth(path: tuple[Piece, ...], length: int, reaches: list[int]) -> bool:
    """Whether a run of `length` behind `path` is better than those tokens once more for each of the ways on, whose
    longest sequences are `reaches`."""
    if not path:
        return length >= ALIKE * max(reaches)
    context = sum(piece.length for piece in path)
    return context + length <= PARTING_KEYS * length * (len(reaches) - 1)


def tokens_of(path: tuple[Piece, ...], skipped: int = 0) -> tuple[range, ...]:
    """Where a path's tokens are in the row, piece by piece, but for its first `skipped` tokens."""
    ranges = []
    for piece in path:
        tokens = piece.tokens[skipped:]
        skipped = max(0, skipped - piece.length)
        if tokens:
            ranges.append(tokens)
    return tuple(ranges)


def alike(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that prompts of one mind begin with alike and that are read once: 0 where there are too few, and never all
    of a prompt."""
    if len(prompts) < 2:
        return 0
    # What the first and the last in order begin with alike, all between them do.
    low, high = min(prompts), max(prompts)
    most = min(map(len, prompts)) - 1
    count = next((i for i in range(most) if low[i] != high[i]), most)
    return count if count >= ALIKE * max(map(len, prompts)) else 0
