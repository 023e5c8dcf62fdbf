"""Runs of a packed row → blocks of queries and keys that attention computes."""

from collections.abc import Sequence
from itertools import chain

import torch

from ttrl_pop.kernels.memory import transfer
from ttrl_pop.packing.attention import BEHIND, Block, BlockPlan
from ttrl_pop.packing.radix import Run

SLACK = 1.5
"""Pairs of query and key that a block computes over those that count, at most: below it unused pairs cost less than
another block."""


def block_plan(groups: Sequence[Sequence[Run]], device: torch.device) -> BlockPlan:
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
