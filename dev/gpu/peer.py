"""Phase c, the peer: steps of TRL's GRPOTrainer with transformers' generate, at equal work; one row for each step as it
is done, and one for each length.

The first step of a length is a warm-up, except at 512 tokens: one step there takes as long as several at 128, and what
a first one costs beyond others weighs little. The large model is not asked for 512.

python -m dev.gpu.peer FOLDER --name smollm2 --device cuda --dtype bfloat16
"""

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks.workload import times_table
from dev.gpu.models import LARGE, SMALL
from dev.gpu.rows import say

MICRO_BATCHES = {(SMALL, 128): 128, (SMALL, 512): 32, (LARGE, 128): 32}
"""Rows of one forward and backward by model and new tokens: about as many as 80 GB hold."""
PROBLEMS, GENERATIONS = 16, 16


def plans(name: str, quick: bool) -> list[tuple[int, int]]:
    """New tokens and steps that are not counted, of each length; one is counted."""
    if quick:
        return [(4, 1)]
    return [(128, 1), *([(512, 0)] if name == SMALL else [])]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dev.gpu.peer", description="Time steps of TRL.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    from benchmarks.peer_trl import time_steps

    for new_tokens, warm_ups in plans(given.name, given.quick):
        began = time.perf_counter()
        micro_batch = MICRO_BATCHES.get((given.name, new_tokens), 64)
        problems = 4 if given.quick else PROBLEMS
        if given.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        step = partial(say, side="TRL", model=given.name, new_tokens=new_tokens, micro_batch=micro_batch)
        seconds = time_steps(
            *(given.folder, times_table(problems), GENERATIONS, new_tokens, warm_ups + 1, 8, 2e-4),
            device=given.device, dtype=given.dtype, micro_batch=micro_batch, even=True,
            each=lambda seconds, step=step: step(step_seconds=seconds),
        )  # fmt: skip
        say(
            side="TRL",
            model=given.name,
            new_tokens=new_tokens,
            micro_batch=micro_batch,
            dtype=given.dtype,
            seconds=median(seconds[warm_ups:]),
            warm_ups=warm_ups,
            every=seconds,
            gpu_peak_bytes=torch.cuda.max_memory_allocated() if given.device != "cpu" else None,
            wall=time.perf_counter() - began,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
