"""Runs of a packed row → blocks of queries and keys that attention computes."""

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor

from ttrl_pop.kernels.memory import transfer
from ttrl_pop.packing.attention import BEHIND, Block, BlockPlan
from ttrl_pop.packing.radix import Run

SLACK = 1.5
"""Pairs of query and key that a block computes over those that count, at most: below it unused pairs cost less than
another block."""


def similar(runs: Sequence[Run]) -> list[list[Run]]:
    """Cut runs, ordered by length, where a block would compute too many pairs that do not count."""
    groups: list[list[Run]] = []
    context = useful = 0
    for run in runs:
        context, useful = max(context, run.context), useful + run.length * run.reach
        if not groups or (len(groups[-1]) + 1) * run.length * (context + run.length) > SLACK * useful:
            groups.append([])
            context, useful = run.context, run.length * run.reach
        groups[-1].append(run)
    return groups


def block_plan(groups: Sequence[Sequence[Run]], device: torch.device) -> BlockPlan:
    """A block for each group of runs, which follow each other in the row. All runs of a group begin a sequence, or all
    of them follow something."""
    blocks: list[Block] = []
    order: list[int] = []
    offset = 0
    for group in groups:
        longest = max(run.length for run in group)
        blocks.append(_block(group, longest, device))
        order += [offset + row * longest + i for row, run in enumerate(group) for i in range(run.length)]
        offset += len(group) * longest
    return BlockPlan(blocks, None if len(order) == offset else transfer(order, torch.long, device))


def _block(group: Sequence[Run], longest: int, device: torch.device) -> Block:
    """Queries are `longest` cells for each run, keys the same behind as many as the longest context has. Cells that a
    run leaves over repeat a token of it."""
    queries: slice | Tensor
    if all(run.length == longest for run in group):
        queries = slice(group[0].start, group[0].start + len(group) * longest)
    else:
        queries = transfer([_own(run, longest) for run in group], torch.long, device)
    if not group[0].before:
        # Counted on, cells left over lie behind all tokens of their run, which are its only keys.
        positions = transfer([[*range(longest)]] * len(group), torch.long, device)
        return Block(queries, len(group), None, positions, positions)
    context = max(run.context for run in group)
    keys = [
        padded(chain(*(piece.tokens for piece in run.before)), context, run.start) + _own(run, longest) for run in group
    ]
    key_positions = [
        padded(range(run.context), context, BEHIND) + padded(run.positions, longest, BEHIND) for run in group
    ]
    return Block(
        queries,
        len(group),
        transfer(keys, torch.long, device),
        transfer([padded(run.positions, longest, run.reach - 1) for run in group], torch.long, device),
        transfer(key_positions, torch.long, device),
    )


def _own(run: Run, longest: int) -> list[int]:
    """Tokens of a run, the last one repeated."""
    return padded(run.tokens, longest, run.tokens[-1])


def padded(values: Iterable[int], length: int, filler: int) -> list[int]:
    """`values`, and as much `filler` behind them as makes `length`."""
    given = [*values]
    return given + [filler] * (length - len(given))
