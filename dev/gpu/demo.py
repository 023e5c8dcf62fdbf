"""Phase b: the demo as `make demo` runs it, on a device and in a type; one row of what came of it.

python -m dev.gpu.demo RUN --model FILE.gguf --device cuda --dtype bfloat16
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from dev.gpu.rows import say
from ttrl_pop.cli.app import app
from ttrl_pop.store import files
from ttrl_pop.store.directory import RunDirectory

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = ("--steps=1", "--minds=4", "--set=baseline=false", "--set=answers=false", "--set=problems_per_step=2")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dev.gpu.demo", description="Run the demo on a device.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--graphs", action="store_true")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    settings = [f"--set=device={given.device}", f"--set=dtype={given.dtype}"]
    if given.device != "cpu":
        settings += ["--set=learn.token_budget=16384", f"--set=backend_options.graphs={str(given.graphs).lower()}"]
    began = time.perf_counter()
    typed = [
        *("run", str(EXAMPLES / "times-table.jsonl"), "--config", str(EXAMPLES / "times-table.toml")),
        *("--gold", str(EXAMPLES / "times-table.gold.jsonl"), "--out", str(given.run), "--model", given.model),
        *settings,
        *(QUICK if given.quick else ()),
    ]
    code = app(typed, standalone_mode=False)
    seconds = time.perf_counter() - began
    metrics = list(files.read_lines(RunDirectory(given.run).metrics))
    say(
        dtype=given.dtype,
        graphs=given.graphs,
        exit_code=code or 0,
        wall=seconds,
        agreement=[row.get("vote/agreement") for row in metrics],
        label_accuracy=[row.get("vote/label_accuracy") for row in metrics],
        rollout_accuracy=[row.get("rollout/accuracy") for row in metrics],
        logprob_gap=[row.get("learn/logprob_gap") for row in metrics],
        step_seconds=[sum(v for k, v in row.items() if k.startswith("time/")) for row in metrics],
        gpu_peak_bytes=torch.cuda.max_memory_allocated() if given.device != "cpu" else None,
    )
    return int(code or 0)


if __name__ == "__main__":
    sys.exit(main())
