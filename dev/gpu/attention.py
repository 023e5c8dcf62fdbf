"""Phase c, attention of packed rows: ours in blocks against torch's FlexAttention, forward and backward, on one layer's
queries, keys and values; one row for each shape.

    python -m dev.gpu.attention --device cuda
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.machine import now
from dev.gpu.rows import say
from ttrl_pop.packing.pack import Branch, Pack, Tree, pack
from ttrl_pop.types import Mind

HEADS, KEY_HEADS, WIDTH = 9, 3, 64
SHAPES = {"16 x 1, 128": (112, 1, 128), "4 x 4, 128": (28, 4, 128), "4 x 4, 512": (7, 4, 512)}
"""Trees, branches of each, and tokens of a branch, behind prompts of 23 tokens: some 16,000 tokens."""
REPEATS = 8


def trees(count: int, branches: int, tokens: int) -> list[Tree]:
    """Prompts as as many minds read them, with branches that share nothing."""
    made = []
    for t in range(count):
        own = [tuple(1000 + (t * branches + b) * tokens + i for i in range(tokens)) for b in range(branches)]
        made.append(Tree(tuple(range(t, t + 23)), Mind(t + 1), tuple(Branch(ids, Mind(t + 1)) for ids in own)))
    return made


def flexed(packed: Pack, device: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The same attention by FlexAttention."""
    count = len(packed.ids_N)
    tree_N, branch_N = (torch.zeros(count, dtype=torch.long) for _ in range(2))
    for t, stem in enumerate(packed.stems):
        tree_N[[*chain(*stem)]] = t
        for b, pieces in enumerate(packed.branches[t], start=1):
            tree_N[[*chain(*pieces)]] = t
            branch_N[[*chain(*pieces)]] = b
    tree, branch, position = tree_N.to(device), branch_N.to(device), packed.positions_N
    # A branch alone in its tree is a part of the stem's row.

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (branch[key] == 0) | (branch[key] == branch[query])
        return (tree[query] == tree[key]) & own & (position[key] <= position[query])

    mask = create_block_mask(sees, None, None, count, count, device=device)
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(queries_NHD: Tensor, keys_NKD: Tensor, values_NKD: Tensor) -> Tensor:
        states = [states.transpose(0, 1)[None] for states in (queries_NHD, keys_NKD, values_NKD)]
        out: Any = compiled(*states, block_mask=mask, scale=WIDTH**-0.5, enable_gqa=True)
        return out[0].transpose(0, 1)

    return attend


def seconds(attend: Callable[[Tensor, Tensor, Tensor], Tensor], states: Sequence[Tensor]) -> float:
    """Of one forward and backward: the median."""
    spent = []
    for _ in range(REPEATS):
        began = now()
        out = attend(*states)
        torch.autograd.grad(out.sum(), list(states))
        spent.append(now() - began)
    return median(spent[2:])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dev.gpu.attention", description="Time attention of packed rows.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    dtype = torch.bfloat16 if given.device != "cpu" else torch.float32
    for name, (count, branches, tokens) in SHAPES.items():
        packed = pack(
            trees(2 if given.quick else count, branches, 8 if given.quick else tokens), torch.device(given.device)
        )
        shapes = ((len(packed.ids_N), heads, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS))
        states = [torch.randn(*shape, device=given.device, dtype=dtype, requires_grad=True) for shape in shapes]
        ours = lambda q, k, v, plan=packed.plan: plan.attend(0, q, k, v, WIDTH**-0.5, None)  # noqa: E731
        row = {"attention": name, "tokens": len(packed.ids_N), "ours": seconds(ours, states)}
        if given.device != "cpu":
            other = flexed(packed, given.device)
            gap = (ours(*states) - other(*states)).abs().max()
            row |= {"flex": seconds(other, states), "gap": float(gap)}
        say(**row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
