"""Seconds of the same rollouts by vLLM on the CPU: as its users have it, or with the minds of its backend here.

    plain     rollouts of a problem share its prompt in the prefix cache
    salted    the very requests of `minds`, with salts that keep the cached prompts of minds apart, and no minds
    minds     a mind for each request, all requests at once
    serial    one mind after another

What differs between `salted` and `minds` is the work for the minds alone. All in float32, without an adapter, prefix
caching on, without compiled code; completions have the length planned for them and end at no token of their own.

Starting the engine is not counted. Run in a process of its own and in vLLM's environment, which prints one JSON line:

    OMP_NUM_THREADS=2 TORCHDYNAMO_DISABLE=1 python -m benchmarks.peer_vllm MODEL_FOLDER --side minds --problems 16 \
        --rollouts 16 --new-tokens 64 --steps 2
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence

import torch

from benchmarks.machine import tell
from benchmarks.workload import completion_lengths, times_table
from ttrl_pop import randomness
from ttrl_pop.model.load import load_model
from ttrl_pop.model.policy import Policy
from ttrl_pop.packing.radix import alike
from ttrl_pop.population.norm_noise import NormNoise
from ttrl_pop.population.options import NormNoiseOptions
from ttrl_pop.sample.vllm.engine import Engine, Order
from ttrl_pop.sample.vllm.launch import Model
from ttrl_pop.sample.vllm.options import VllmOptions

SIGMA = 0.005
"""Fixed, so that nothing is calibrated; its value changes no cost."""
SIDES = ("plain", "salted", "minds", "serial")


def orders_of(prompts: Sequence[tuple[int, ...]], side: str, lengths: Sequence[int], step: int) -> list[Order]:
    """A request of every mind for every prompt, the requests of a problem together."""
    minds = len(lengths) // len(prompts)
    return [
        Order(
            prompt,
            mind + 1,
            # Of its own in each step: nobody reads what another step has left in the cache.
            f"{step}" if side == "plain" else f"{step}:{mind}",
            randomness.seed("bench", problem, mind),
            lengths[problem * minds + mind],
            1.0,
            1.0,
            (),
        )
        for problem, prompt in enumerate(prompts)
        for mind in range(minds)
    ]


def write(engine: Engine, orders: Sequence[Order]) -> None:
    """
    Raises:
        RuntimeError: not all was written.
    """
    # An order is named again and again while it grows.
    tokens = sum(len(written.ids) for written in dict(engine.write(orders, weights="base")).values())
    if tokens != sum(order.max_tokens for order in orders):
        raise RuntimeError(f"vLLM wrote {tokens} tokens of {sum(order.max_tokens for order in orders)}")


def write_serially(engine: Engine, orders: Sequence[Order]) -> None:
    """Write the orders of one mind at a time."""
    for slot in sorted({order.slot for order in orders}):
        engine.fill(slot)
        write(engine, [order for order in orders if order.slot == slot])
    engine.fill(None)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer_vllm", description="Time rollouts by vLLM.")
    parser.add_argument("model_folder", help="folder of a Hugging Face model, or smollm2")
    parser.add_argument("--side", default="plain", choices=SIDES)
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--rollouts", type=int, default=16, help="for each problem; with minds, one of each")
    parser.add_argument("--examples", type=int, default=1)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--lengths", default="even", choices=("even", "mixed"))
    parser.add_argument("--steps", type=int, default=2)
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    policy = Policy(load_model(given.model_folder, "cpu", "float32"), NormNoise(NormNoiseOptions(sigma=SIGMA)))
    population = policy.population
    assert isinstance(population, NormNoise)
    prompts = [tuple(policy.model.tokenizer(text)["input_ids"]) for text in times_table(given.problems, given.examples)]
    rows = given.problems * given.rollouts
    lengths = completion_lengths(given.lengths, rows, given.new_tokens)
    has_minds = given.side in ("minds", "serial")
    longest = max(map(len, prompts)) + given.new_tokens
    sites = population.sites if has_minds else ()
    engine = Engine(
        Model(str(policy.model.source), "float32", longest, sites, None, rows, False),
        VllmOptions(max_model_len=longest),
    )
    if has_minds:
        engine.write_minds(population.offsets(population.spawn(0, 1, given.rollouts)))
    seconds = []
    for step in range(given.steps):
        orders = orders_of(prompts, given.side, lengths, step)
        began = time.perf_counter()
        (write_serially if given.side == "serial" else write)(engine, orders)
        seconds.append(time.perf_counter() - began)
    threads = int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads()))
    prompt_tokens = [len(prompt) for prompt in prompts]
    return tell(seconds=seconds, prompt_tokens=prompt_tokens, alike=alike(prompts), threads=threads)


if __name__ == "__main__":
    sys.exit(main())
