"""Phase c, our side: a step of ours in every form, on one model, in one process: one row for each form.

Completions all have the planned length, so that the peer has equal work. Forms that are compared with one another, with
noise and without, are open at once and take turns. The share of the attainable is that of the rate measured in the same
run: in rollouts bytes of weights, keys and values over the bandwidth, in the learner products with frozen weights,
forward and back, over the rate of products; all else counts as nothing. Of rollouts that is a low bound, as they read
prompts, record steps and wait for the host, too: `dev.gpu.profile` has the decode step by itself.

    python -m dev.gpu.speed FOLDER --name smollm2 --device cuda --dtype bfloat16
"""

import argparse
import gc
import logging
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from benchmarks import ours
from benchmarks.workload import LEARNER, SILENT, forward_work
from dev.gpu.attainable import measure
from dev.gpu.decoding import weights
from dev.gpu.models import SMALL
from dev.gpu.rows import Row, say
from ttrl_pop.packing.radix import alike
from ttrl_pop.run.session import Session

FORMS = {"16 x 1": ("norm-noise", 16, 1), "4 x 4": ("norm-noise", 4, 4), "16 x 1, no noise": (SILENT, 16, 1)}
PROBLEMS = 16


def plans(name: str, quick: bool, on_cuda: bool) -> list[tuple[tuple[str, ...], int, bool, int]]:
    """Forms that take turns, new tokens, graphs and counted steps of each row, the most important first."""
    with_and_without = ("16 x 1", "16 x 1, no noise")
    if quick:
        return [(with_and_without, 4, on_cuda, 1), (("4 x 4",), 4, on_cuda, 1)]
    if name != SMALL:
        return [(with_and_without, 128, True, 3), (("4 x 4",), 128, True, 2), (("16 x 1",), 512, True, 1)]
    return [
        (with_and_without, 128, True, 6),
        (("4 x 4",), 128, True, 3),
        (("16 x 1",), 512, True, 2),
        (("4 x 4",), 512, True, 1),
        (("16 x 1",), 128, False, 1),
    ]


def figures(session: Session, spent: dict[str, list[float]], new_tokens: int, machine: Row) -> Row:
    """Seconds of a step and its parts, and their shares of what the machine attains."""
    network = session.policy.network
    config = network.config.get_text_config()
    prompts = [session.prompts[problem.id] for problem in session.problems]
    rows = len(prompts) * session.config.group_size
    minds = session.config.population.minds
    work = forward_work([len(ids) for ids in prompts], alike(prompts), minds, [new_tokens] * rows)
    layers, head = weights(session)
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


@dataclass(slots=True)
class Form:
    """One of several forms that take turns."""

    name: str
    timed: ours.TimedSteps
    peak: int | None


def opened(name: str, folder: str, settings: dict[str, Any]) -> Form:
    """A form after its first step, which is not counted; its memory is what was taken beyond what others hold."""
    on_gpu = settings["device"] != "cpu"
    gc.collect()
    held = 0
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    population, minds, samples = FORMS[name]
    flags = {"population": population, "minds": minds, "samples": samples, **settings}
    graphs = flags.pop("graphs")
    typed = [folder, *(f"--{flag}={value}" for flag, value in flags.items()), *(["--graphs"] if graphs else [])]
    timed = ours.TimedSteps(ours.opened(ours.parsed(typed)))
    timed.step()
    return Form(name, timed, torch.cuda.max_memory_allocated() - held if on_gpu else None)


def run(folder: str, name: str, device: str, dtype: str, quick: bool, machine: Row, only: Sequence[str]) -> None:
    """Say one row for each form of each plan."""
    for names, new_tokens, graphs, steps in plans(name, quick, device != "cpu"):
        if only and not set(names) & set(only):
            continue
        settings: dict[str, Any] = {
            "new-tokens": new_tokens, "problems": PROBLEMS if not quick else 4, "device": device, "dtype": dtype,
            "lengths": "even", "graphs": graphs,
        }  # fmt: skip
        shared: Row = {"side": "ours", "model": name, "new_tokens": new_tokens, "graphs": graphs, "dtype": dtype}
        began = time.perf_counter()
        forms: list[Form] = []
        try:
            for each in names:
                forms.append(opened(each, folder, settings))
            for number in range(steps):
                # The one that went second goes first next: what drifts meets both alike.
                for form in forms if number % 2 == 0 else reversed(forms):
                    form.timed.step()
            for form in forms:
                say(**shared, form=form.name, **counted(form, new_tokens, machine), wall=time.perf_counter() - began)
        except Exception as error:
            # One form that fails must not cost the others of a lease.
            told = f"{type(error).__name__}: {str(error)[:500]}"
            say(**shared, form=" and ".join(names), error=told, wall=time.perf_counter() - began)


def counted(form: Form, new_tokens: int, machine: Row) -> Row:
    """The figures of a form that has made its steps."""
    session, spent = form.timed.session, form.timed.spent
    return {
        **figures(session, spent, new_tokens, machine),
        "token_budget": session.config.learn.token_budget,
        "every": spent["seconds"],
        **({"gpu_peak_bytes": form.peak} if form.peak is not None else {}),
    }


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
