"""Phase c, the peer: steps of TRL's GRPOTrainer with transformers' generate, at equal work; one row for each length.

python -m dev.gpu.peer FOLDER --name smollm2 --device cuda --dtype bfloat16
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from benchmarks.workload import times_table
from dev.gpu.rows import say

MICRO_BATCHES = {("smollm2", 128): 128, ("smollm2", 512): 32, ("1.5B", 128): 32, ("1.5B", 512): 8}
"""Rows of one forward and backward by model and new tokens: about as many as 80 GB hold."""
PROBLEMS, GENERATIONS = 16, 16


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dev.gpu.peer", description="Time steps of TRL.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    if importlib.util.find_spec("trl") is None:
        say(side="TRL", model=given.name, skipped="TRL is not installed")
        return 0
    from benchmarks.peer_trl import time_steps

    plans = [(4, 1)] if given.quick else [(128, 2), (512, 1)]
    for new_tokens, steps in plans:
        began = time.perf_counter()
        micro_batch = MICRO_BATCHES.get((given.name, new_tokens), 64)
        problems = 4 if given.quick else PROBLEMS
        if given.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        seconds = time_steps(
            *(given.folder, times_table(problems), GENERATIONS, new_tokens, 1 + steps, 8, 2e-4),
            device=given.device, dtype=given.dtype, micro_batch=micro_batch, even=True,
        )  # fmt: skip
        say(
            side="TRL",
            model=given.name,
            new_tokens=new_tokens,
            micro_batch=micro_batch,
            dtype=given.dtype,
            seconds=median(seconds[1:]),
            every=seconds,
            gpu_peak_bytes=torch.cuda.max_memory_allocated() if given.device != "cpu" else None,
            wall=time.perf_counter() - began,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
