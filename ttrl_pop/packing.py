"""Trees of tokens → one row without padding: a prompt once, and the completions that branch off it.

A tree is a prompt as one mind reads it and any number of branches, each in a mind of its own. Packed, a prompt passes
the layers once however many completions follow, and every token sees exactly what it would see in a row of its own:
logits and gradients are those of separate rows.

    pack([Tree(prompt_ids, mind, (Branch(completion_ids, mind), …)), …], device)

Order of tokens: all stems by length, then all branches. A stem is a prompt, together with its branch where there is
only one and of the same mind.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ttrl_pop.attention import BEHIND, Block, BlockPlan, Plan
from ttrl_pop.types import Mind

SLACK = 1.5
"""Pairs of query and key that a block computes over those that count, at most: below it unused pairs cost less than
another block."""


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

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + sum(len(branch.ids) for branch in self.branches)

    @property
    def is_chain(self) -> bool:
        """Whether it is one sequence in one mind."""
        return len(self.branches) == 1 and self.branches[0].mind == self.mind


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
    stems: tuple[range, ...]
    """Tokens of each tree's prompt, in the order of the trees as given."""
    branches: tuple[tuple[range, ...], ...]
    """Tokens of each branch, by tree."""


@dataclass(frozen=True, slots=True)
class _Run:
    """A contiguous piece of the row: tokens that follow `context` tokens of their own sequence."""

    tree: int
    branch: int | None
    ids: tuple[int, ...]
    mind: Mind | None
    context: int

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def reach(self) -> int:
        return self.context + len(self.ids)


def pack(trees: Sequence[Tree], device: torch.device) -> Pack:
    """Lay the trees out as one row. A branch may be empty, a prompt may not.

    Raises:
        ValueError: some trees have a mind and some have none.
    """
    stems = sorted(
        (
            _Run(t, None, tree.prompt_ids + (tree.branches[0].ids if tree.is_chain else ()), tree.mind, 0)
            for t, tree in enumerate(trees)
        ),
        key=lambda run: run.length,
    )
    twigs = sorted(
        (
            _Run(t, b, branch.ids, branch.mind, len(tree.prompt_ids))
            for t, tree in enumerate(trees)
            if not tree.is_chain
            for b, branch in enumerate(tree.branches)
            if branch.ids
        ),
        key=lambda run: (run.length, run.reach),
    )
    runs = [*stems, *twigs]
    starts = _starts(run.length for run in runs)
    stem_tokens: list[range] = [range(0)] * len(trees)
    branch_tokens = [[range(0)] * len(tree.branches) for tree in trees]
    for run, start in zip(runs, starts, strict=True):
        if run.branch is None:
            prompt = len(trees[run.tree].prompt_ids)
            stem_tokens[run.tree] = range(start, start + prompt)
            if trees[run.tree].is_chain:
                branch_tokens[run.tree][0] = range(start + prompt, start + run.length)
        else:
            branch_tokens[run.tree][run.branch] = range(start, start + run.length)
    minds = [run.mind for run in runs]
    known = tuple(dict.fromkeys(mind for mind in minds if mind is not None))
    if known and None in minds:
        raise ValueError("one forward takes sequences with a mind or without, not both")
    place = {mind: i for i, mind in enumerate(known)}
    lengths = torch.tensor([run.length for run in runs])
    return Pack(
        ids_N=torch.tensor([token for run in runs for token in run.ids], device=device),
        positions_N=torch.cat([torch.arange(run.context, run.reach) for run in runs]).to(device),
        minds_M=known or None,
        place_N=torch.tensor([place[m] if m else 0 for m in minds]).repeat_interleave(lengths).to(device),
        plan=_plan(stems, twigs, starts, stem_tokens, device),
        stems=tuple(stem_tokens),
        branches=tuple(tuple(tokens) for tokens in branch_tokens),
    )


def _plan(
    stems: Sequence[_Run], twigs: Sequence[_Run], starts: Sequence[int], stem_tokens: list[range], device: torch.device
) -> BlockPlan:
    blocks, order, offset, first = [], [], 0, 0
    for group in [*_similar(stems), *_similar(twigs)]:
        begins = starts[first : first + len(group)]
        longest = max(run.length for run in group)
        even = all(run.length == longest for run in group)
        queries = torch.tensor([[b + min(i, r.length - 1) for i in range(longest)] for r, b in _pairs(group, begins)])
        # Unused places of a stem lie behind all others; those of a branch see what its last token sees.
        positions = torch.tensor(
            [[r.context + (i if r.branch is None else min(i, r.length - 1)) for i in range(longest)] for r in group]
        )
        keys = key_positions = None
        if group[0].branch is not None:
            context = max(run.context for run in group)
            rows = [
                [
                    *stem_tokens[r.tree],
                    *([b] * (context - r.context)),
                    *(b + min(i, r.length - 1) for i in range(longest)),
                ]
                for r, b in _pairs(group, begins)
            ]
            places = [
                [
                    *range(r.context),
                    *([BEHIND] * (context - r.context)),
                    *(r.context + i if i < r.length else BEHIND for i in range(longest)),
                ]
                for r in group
            ]
            keys, key_positions = torch.tensor(rows).to(device), torch.tensor(places)
        blocks.append(
            Block(
                slice(begins[0], begins[0] + len(group) * longest) if even else queries.to(device),
                len(group),
                keys,
                positions.to(device),
                (positions if key_positions is None else key_positions).to(device),
            )
        )
        order += [offset + row * longest + i for row, run in enumerate(group) for i in range(run.length)]
        offset += len(group) * longest
        first += len(group)
    return BlockPlan(blocks, None if len(order) == offset else torch.tensor(order, device=device))


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


def _pairs(runs: Sequence[_Run], begins: Sequence[int]) -> Iterable[tuple[_Run, int]]:
    return zip(runs, begins, strict=True)


def _starts(lengths: Iterable[int]) -> list[int]:
    starts, at = [], 0
    for length in lengths:
        starts.append(at)
        at += length
    return starts
