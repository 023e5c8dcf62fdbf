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
from ttrl_pop.packing.attention import Plan
from ttrl_pop.packing.plan import block_plan, similar
from ttrl_pop.packing.radix import NodeId, Piece, Run, grow, tokens_of
from ttrl_pop.types import Mind


@dataclass(frozen=True, slots=True)
class Branch:
    """Tokens after a prompt, as one mind reads them."""

    ids: tuple[int, ...]
    mind: Mind | None


@dataclass(frozen=True, slots=True)
class Tree:
    """A prompt as one mind reads it, and what follows it."""

    prompt_ids: tuple[int, ...]
    mind: Mind | None
    """Who reads the prompt; None: no mind (z = 0). In one forward all have a mind or none has."""
    branches: tuple[Branch, ...] = ()


@dataclass(frozen=True, slots=True)
class Pack:
    """One row of tokens, with all that a forward over it needs to know."""

    ids_N: Int[Tensor, "N"]
    positions_N: Int[Tensor, "N"]
    """From 0 at the first token of each sequence."""
    minds_M: tuple[Mind, ...] | None
    """The different minds; None where no token has one."""
    mind_N: Int[Tensor, "N"]
    """Index of each token's mind among `minds_M`."""
    plan: Plan
    stems: tuple[tuple[range, ...], ...]
    """Tokens of each tree's prompt, in the order of the trees as given, piece by piece."""
    branches: tuple[tuple[tuple[range, ...], ...], ...]
    """Tokens of each branch, by tree, piece by piece."""

    def sources(self, tree: int, branch: int) -> tuple[int, ...]:
        """The tokens that predict a branch, each the next one: the last of the prompt, then the branch's own, of which
        the last predicts what may follow."""
        return (self.stems[tree][-1][-1], *chain(*self.branches[tree][branch]))


def pack(trees: Sequence[Tree], device: torch.device) -> Pack:
    """Lay the trees out as one row. A branch may be empty, a prompt may not.

    Raises:
        ValueError: some trees have a mind and some have none.
    """
    own: dict[Mind | None, dict[NodeId, tuple[int, ...]]] = {}
    other: dict[tuple[tuple[int, ...], Mind | None, Mind | None], dict[NodeId, tuple[int, ...]]] = {}
    for t, tree in enumerate(trees):
        of_mind = own.setdefault(tree.mind, {})
        of_mind[t, None] = tree.prompt_ids
        for b, branch in enumerate(tree.branches):
            if branch.mind == tree.mind:
                of_mind[t, b] = tree.prompt_ids + branch.ids
            else:
                other.setdefault((tree.prompt_ids, tree.mind, branch.mind), {})[t, b] = branch.ids
    runs: list[Run] = []
    paths: dict[NodeId, tuple[Piece, ...]] = {}
    for mind, sequences in own.items():
        paths |= grow(sequences, mind, (), runs)
    for (*_, mind), sequences in other.items():
        t, _ = next(iter(sequences))
        paths |= grow(sequences, mind, paths[t, None], runs)
    first = sorted((run for run in runs if not run.before), key=lambda run: run.length)
    after = sorted((run for run in runs if run.before), key=lambda run: (run.length, run.reach))
    runs = [*first, *after]
    for run, start in zip(runs, _starts(run.length for run in runs), strict=True):
        run.start = start
    known = tuple(dict.fromkeys(run.mind for run in runs if run.mind is not None))
    if known and any(run.mind is None for run in runs):
        raise ValueError("one forward takes sequences with a mind or without, not both")
    number: dict[Mind | None, int] = {mind: i for i, mind in enumerate(known)}
    return Pack(
        ids_N=transfer([token for run in runs for token in run.ids], torch.long, device),
        positions_N=transfer([*chain(*(run.positions for run in runs))], torch.long, device),
        minds_M=known or None,
        mind_N=transfer([*chain(*([number.get(run.mind, 0)] * run.length for run in runs))], torch.long, device),
        plan=block_plan([*similar(first), *similar(after)], device),
        stems=tuple(tokens_of(paths[t, None]) for t in range(len(trees))),
        branches=tuple(
            tuple(tokens_of(paths[t, b], len(tree.prompt_ids)) for b in range(len(tree.branches)))
            for t, tree in enumerate(trees)
        ),
    )


def _starts(lengths: Iterable[int]) -> list[int]:
    """Where each piece begins if they lie one after another."""
    starts, at = [], 0
    for length in lengths:
        starts.append(at)
        at += length
    return starts
