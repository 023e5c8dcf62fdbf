"""Phase c, our side: a step of ours in every form, on one model, in one process: one row for each form.

Completions all have the planned length, so that the peer has equal work. The share of the attainable is that of the
rate measured in the same run: in decode bytes of weights, keys and values over the bandwidth, in the learner products
with frozen weights, forward and back, over the rate of products; all else counts as nothing.

    python -m dev.gpu.speed FOLDER --name smollm2 --device cuda --dtype bfloat16
"""

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from benchmarks import ours
from benchmarks.workload import LEARNER, SILENT, forward_work
from dev.gpu.attainable import measure
from dev.gpu.rows import Row, say
from ttrl_pop.packing.radix import alike
from ttrl_pop.run.session import Session

FORMS = {"16 x 1": ("norm-noise", 16, 1), "4 x 4": ("norm-noise", 4, 4), "16 x 1, no noise": (SILENT, 16, 1)}
PROBLEMS = 16


def plans(quick: bool, on_cuda: bool) -> list[tuple[str, int, bool, int]]:
    """Form, new tokens, graphs and counted steps of each row, the most important first."""
    if quick:
        return [("16 x 1", 4, on_cuda, 1), ("4 x 4", 4, on_cuda, 1)]
    return [
        ("16 x 1", 128, True, 2),
        ("4 x 4", 128, True, 2),
        ("16 x 1, no noise", 128, True, 2),
        ("16 x 1", 512, True, 1),
        ("4 x 4", 512, True, 1),
        ("16 x 1", 128, False, 1),
    ]


def figures(session: Session, spent: dict[str, list[float]], new_tokens: int, machine: Row) -> Row:
    """Seconds of a step and its parts, and their shares of what the machine attains."""
    network = session.policy.network
    config = network.config.get_text_config()
    prompts = [session.prompts[problem.id] for problem in session.problems]
    rows = len(prompts) * session.config.group_size
    minds = session.config.population.minds
    work = forward_work([len(ids) for ids in prompts], alike(prompts), minds, [new_tokens] * rows)
    head = network.get_output_embeddings().weight
    layers = sum(
        p.numel() for name, p in network.named_parameters() if p.ndim == 2 and "layers" in name and "lora" not in name
    )
    read = (layers + head.numel()) * head.element_size()
    mean_length = len(prompts[0]) + new_tokens / 2
    cached = rows * mean_length * session.policy.cache_bytes_per_token
    rollouts, learner = (median(spent[part][1:]) for part in ("rollouts", "learner"))
    products = 2 * LEARNER * (layers * work.layer_tokens + head.numel() * work.head_positions)
    return {
        "seconds": median(spent["seconds"][1:]),
        "rollouts": rollouts,
        "learner": learner,
        "tokens_per_second": rows * new_tokens / rollouts,
        "decode_share": new_tokens * (read + cached) / machine["bytes_per_second"] / rollouts,
        "learner_share": products / machine["flops_per_second"] / learner,
        "hidden_size": config.hidden_size,
    }


def run(folder: str, name: str, device: str, dtype: str, quick: bool, machine: Row, only: Sequence[str]) -> None:
    """Say one row for each plan."""
    for form, new_tokens, graphs, steps in plans(quick, device != "cpu"):
        if only and form not in only:
            continue
        population, minds, samples = FORMS[form]
        flags: dict[str, Any] = {
            "population": population, "minds": minds, "samples": samples, "new-tokens": new_tokens,
            "problems": PROBLEMS if not quick else 4, "steps": 1 + steps, "device": device, "dtype": dtype,
            "lengths": "even",
        }  # fmt: skip
        typed = [folder, *(f"--{flag}={value}" for flag, value in flags.items()), *(["--graphs"] if graphs else [])]
        row: Row = {
            "side": "ours",
            "model": name,
            "form": form,
            "new_tokens": new_tokens,
            "graphs": graphs,
            "dtype": dtype,
        }
        began = time.perf_counter()
        try:
            if device != "cpu":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            session = ours.opened(ours.parsed(typed))
            spent = ours.time_steps(session, 1 + steps)
            row |= figures(session, spent, new_tokens, machine)
            row |= {"token_budget": session.config.learn.token_budget, "every": spent["seconds"]}
            if device != "cpu":
                row["gpu_peak_bytes"] = torch.cuda.max_memory_allocated()
            del session
        except Exception as error:
            # One form that fails must not cost the others of a lease.
            row["error"] = f"{type(error).__name__}: {str(error)[:500]}"
        say(**row, wall=time.perf_counter() - began)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dev.gpu.speed", description="Time steps of ours.")
    parser.add_argument("folder")
    parser.add_argument("--name", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="*", default=())
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    machine = measure(given.device, given.quick)
    say(attainable=machine)
    run(given.folder, given.name, given.device, given.dtype, given.quick, machine, given.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
