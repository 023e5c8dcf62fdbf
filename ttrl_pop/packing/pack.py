"""Trees of tokens → one row without padding: what many sequences begin with once, and all that follows beside it.

A tree is a prompt as one mind reads it and any number of branches, each in a mind of its own. Packed, all that the
sequences of one mind begin with alike passes the layers once: a prompt, however many completions follow; a system
message or worked examples before many prompts; the first tokens of completions that part later. Every token sees
exactly what it would see in a row of its own: logits and gradients are those of separate rows.

    pack([Tree(prompt_ids, mind, (Branch(completion_ids, mind), …)), …], device)

Order of tokens: all that sequences begin with, by length, then all that follows something, by length.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Int
from torch import Tensor

from ttrl_pop.kernels.memory import transfer
from ttrl_pop.packing.attention import BEHIND, Block, BlockPlan, Plan
from ttrl_pop.types import Mind

SLACK = 1.5
"""Pairs of query and key that a block computes over those that count, at most: below it unused pairs cost less than
another block."""
ALIKE = 0.125
"""Of the longest sequence: what sequences must begin with alike to be read once. For less, the masks of what follows
are not worth it."""
KEYS = 16
"""Keys that a run sees beyond itself are copied for it: so many take about the memory of one token in the layers."""
PARTING_KEYS = 32
"""Keys that are copied at most for a token that is saved where sequences part behind their beginning. On a CPU some 160
take the time of a token, but twice `KEYS` are as much memory as is given for it."""


@dataclass(frozen=True, slots=True)
class Branch:
    """Tokens after a prompt, as one mind reads them."""

    ids: tuple[int, ...]
    mind: Mind | None


@dataclass(frozen=True, slots=True)
class Tree:
    prompt_ids: tuple[int, ...]
    mind: Mind | None
    """Who reads the prompt; None: no mind (z = 0). In one forward all have a mind or none has."""
    branches: tuple[Branch, ...] = ()


@dataclass(frozen=True, slots=True)
class Pack:
    """One forward."""

    ids_N: Int[Tensor, "N"]
    positions_N: Int[Tensor, "N"]
    """From 0 at the first token of each sequence."""
    minds_M: tuple[Mind, ...] | None
    """The different minds; None where no token has one."""
    place_N: Int[Tensor, "N"]
    """Index of each token's mind among `minds_M`."""
    plan: Plan
    stems: tuple[tuple[range, ...], ...]
    """Tokens of each tree's prompt, in the order of the trees as given, piece by piece."""
    branches: tuple[tuple[tuple[range, ...], ...], ...]
    """Tokens of each branch, by tree, piece by piece."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """The first tokens of a run."""

    run: "_Run"
    length: int

    @property
    def tokens(self) -> range:
        return range(self.run.start, self.run.start + self.length)


@dataclass(eq=False, slots=True)
class _Run:
    """A contiguous piece of the row."""

    ids: tuple[int, ...]
    mind: Mind | None
    before: tuple[_Piece, ...] = ()
    """What comes before it in its own sequences, from their first token on."""
    start: int = 0
    """Where in the row it begins."""

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def context(self) -> int:
        return sum(piece.length for piece in self.before)

    @property
    def reach(self) -> int:
        return self.context + self.length


_Place = tuple[int, int | None]
"""A tree, and its branch or None for its prompt."""


def pack(trees: Sequence[Tree], device: torch.device) -> Pack:
    """Lay the trees out as one row. A branch may be empty, a prompt may not.

    Raises:
        ValueError: some trees have a mind and some have none.
    """
    own: dict[Mind | None, dict[_Place, tuple[int, ...]]] = {}
    other: dict[tuple[tuple[int, ...], Mind | None, Mind | None], dict[_Place, tuple[int, ...]]] = {}
    for t, tree in enumerate(trees):
        of_mind = own.setdefault(tree.mind, {})
        of_mind[t, None] = tree.prompt_ids
        for b, branch in enumerate(tree.branches):
            if branch.mind == tree.mind:
                of_mind[t, b] = tree.prompt_ids + branch.ids
            else:
                other.setdefault((tree.prompt_ids, tree.mind, branch.mind), {})[t, b] = branch.ids
    runs: list[_Run] = []
    paths: dict[_Place, tuple[_Piece, ...]] = {}
    for mind, sequences in own.items():
        paths |= _grow(sequences, mind, (), runs)
    for (*_, mind), sequences in other.items():
        t, _ = next(iter(sequences))
        paths |= _grow(sequences, mind, paths[t, None], runs)
    first = sorted((run for run in runs if not run.before), key=lambda run: run.length)
    after = sorted((run for run in runs if run.before), key=lambda run: (run.length, run.reach))
    runs = [*first, *after]
    for run, start in zip(runs, _starts(run.length for run in runs), strict=True):
        run.start = start
    known = tuple(dict.fromkeys(run.mind for run in runs if run.mind is not None))
    if known and any(run.mind is None for run in runs):
        raise ValueError("one forward takes sequences with a mind or without, not both")
    place: dict[Mind | None, int] = {mind: i for i, mind in enumerate(known)}
    return Pack(
        ids_N=transfer([token for run in runs for token in run.ids], torch.long, device),
        positions_N=transfer([*chain(*(range(run.context, run.reach) for run in runs))], torch.long, device),
        minds_M=known or None,
        place_N=transfer([place.get(run.mind, 0) for run in runs for _ in run.ids], torch.long, device),
        plan=_plan([*_similar(first), *_similar(after)], device),
        stems=tuple(_tokens(paths[t, None]) for t in range(len(trees))),
        branches=tuple(
            tuple(_tokens(paths[t, b], len(tree.prompt_ids)) for b in range(len(tree.branches)))
            for t, tree in enumerate(trees)
        ),
    )


def _grow(
    sequences: dict[_Place, tuple[int, ...]], mind: Mind | None, before: tuple[_Piece, ...], runs: list[_Run]
) -> dict[_Place, tuple[_Piece, ...]]:
    """Append to `runs` what the sequences behind `before` are made of: a radix tree, but for beginnings that are not
    worth a run of their own. Gives the pieces of each sequence, `before` among them."""
    paths: dict[_Place, tuple[_Piece, ...]] = {}
    # Sequences that have a path in common, which holds their tokens up to a place.
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
            run = _Run(sequences[longest][at:end], mind, path)
            runs.append(run)
            for member in group:
                if len(sequences[member]) <= end:
                    paths[member] = (*path, _Piece(run, len(sequences[member]) - at))
            if parting:
                waiting.append(((*path, _Piece(run, end - at)), end, parting))
    return paths


def _parting(group: list[_Place], at: int, sequences: dict[_Place, tuple[int, ...]]) -> tuple[int, list[_Place]]:
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


def _by_next(members: list[_Place], at: int, sequences: dict[_Place, tuple[int, ...]]) -> list[list[_Place]]:
    """Those that go on from `at`, by the token that stands there."""
    groups: dict[int, list[_Place]] = {}
    for member in members:
        if len(sequences[member]) > at:
            groups.setdefault(sequences[member][at], []).append(member)
    return list(groups.values())


def _is_worth(path: tuple[_Piece, ...], length: int, reaches: list[int]) -> bool:
    """Whether a run of `length` behind `path` is better than those tokens once more for each of the ways on, whose
    longest sequences are `reaches`."""
    if not path:
        return length >= ALIKE * max(reaches)
    context = sum(piece.length for piece in path)
    return context + length <= PARTING_KEYS * length * (len(reaches) - 1)


def _tokens(path: tuple[_Piece, ...], skipped: int = 0) -> tuple[range, ...]:
    """Those of all pieces but for the first `skipped`."""
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


def _plan(groups: Sequence[Sequence[_Run]], device: torch.device) -> BlockPlan:
    """A block for each group of runs, which follow each other in the row."""
    blocks: list[Block] = []
    order: list[int] = []
    offset = 0
    for group in groups:
        longest = max(run.length for run in group)
        even = all(run.length == longest for run in group)
        queries = [[run.start + min(i, run.length - 1) for i in range(longest)] for run in group]
        # Unused places of a beginning lie behind all others; those of what follows see what its last token sees.
        positions = transfer(
            [[run.context + (min(i, run.length - 1) if run.before else i) for i in range(longest)] for run in group],
            torch.long,
            device,
        )
        keys, key_positions = None, positions
        if group[0].before:
            context = max(run.context for run in group)
            rows = [
                [
                    *chain(*(piece.tokens for piece in run.before)),
                    *([run.start] * (context - run.context)),
                    *(run.start + min(i, run.length - 1) for i in range(longest)),
                ]
                for run in group
            ]
            places = [
                [
                    *range(run.context),
                    *([BEHIND] * (context - run.context)),
                    *(run.context + i if i < run.length else BEHIND for i in range(longest)),
                ]
                for run in group
            ]
            keys, key_positions = (transfer(values, torch.long, device) for values in (rows, places))
        blocks.append(
            Block(
                slice(group[0].start, group[0].start + len(group) * longest)
                if even
                else transfer(queries, torch.long, device),
                len(group),
                keys,
                positions,
                key_positions,
            )
        )
        order += [offset + row * longest + i for row, run in enumerate(group) for i in range(run.length)]
        offset += len(group) * longest
    return BlockPlan(blocks, None if len(order) == offset else transfer(order, torch.long, device))


def _similar(runs: Sequence[_Run]) -> list[list[_Run]]:
    """Cut runs, ordered by length, where a block would compute too many pairs that do not count."""
    groups: list[list[_Run]] = []
    context = useful = 0
    for run in runs:
        context, useful = max(context, run.context), useful + run.length * run.reach
        if not groups or (len(groups[-1]) + 1) * run.length * (context + run.length) > SLACK * useful:
            groups.append([])
            context, useful = run.context, run.length * run.reach
        groups[-1].append(run)
    return groups


def _starts(lengths: Iterable[int]) -> list[int]:
    starts, at = [], 0
    for length in lengths:
        starts.append(at)
        at += length
    return starts
