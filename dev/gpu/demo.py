"""Phase b: the demo as `make demo` runs it, on a device and in a type; a row for each step as it is done, and one of
what came of it.

python -m dev.gpu.demo RUN --model FILE.gguf --device cuda --dtype bfloat16
"""

import argparse
import sys
import threading
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


def tell_steps(metrics: Path, ended: threading.Event, dtype: str) -> None:
    """Say the steps of a run as they are written, for where it is cut off."""
    told = 0
    while True:
        last = ended.wait(0.5)
        rows = list(files.read_lines(metrics)) if metrics.exists() else []
        for row in rows[told:]:
            figures = {key: row.get(key) for key in ("step", "rollout/accuracy", "vote/agreement", "learn/logprob_gap")}
            say(dtype=dtype, **figures)
        told = len(rows)
        if last:
            return


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
        settings.append(f"--set=backend_options.graphs={str(given.graphs).lower()}")
    began = time.perf_counter()
    typed = [
        *("run", str(EXAMPLES / "times-table.jsonl"), "--config", str(EXAMPLES / "times-table.toml")),
        *("--gold", str(EXAMPLES / "times-table.gold.jsonl"), "--out", str(given.run), "--model", given.model),
        *settings,
        *(QUICK if given.quick else ()),
    ]
    ended = threading.Event()
    teller = threading.Thread(target=tell_steps, args=(RunDirectory(given.run).metrics, ended, given.dtype))
    teller.start()
    try:
        code = app(typed, standalone_mode=False)
    finally:
        ended.set()
        teller.join()
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
        step_seconds=[row.get("time/step") for row in metrics],
        gpu_peak_bytes=torch.cuda.max_memory_allocated() if given.device != "cpu" else None,
    )
    return int(code or 0)


if __name__ == "__main__":
    sys.exit(main())
