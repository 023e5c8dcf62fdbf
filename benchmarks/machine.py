"""What the machine attains: the rate of float32 matrix products at the shapes of a model, and a process's peak memory.

A rate is that of a forward product and of the product that carries a gradient back to the input, in turn, as the
median of repeats, by torch's own products or by those that ours takes (`ttrl_pop.kernels.matmul`), whichever are
faster. Weights lie warm in the cache here, which those of a whole model do not: an upper bound.
Run in a process of its own, which prints one JSON line:

    python -m benchmarks.machine MODEL_FOLDER
"""

import argparse
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from ttrl_pop.kernels.matmul import lay_out, product

LAYER_ROWS = 2048
"""Tokens of one product of a layer, as in prefill and in the learner."""
HEAD_ROWS = 256
"""Positions of one product with the vocabulary, of which only completions have any."""

Shape = tuple[int, int]
"""(in, out) of a linear layer."""


def linear_shapes(model_folder: str) -> tuple[Counter[Shape], Shape]:
    """How often each shape stands in the model's linear layers, and the shape of its LM head."""
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_folder))
    head = network.get_output_embeddings()
    layers = [module for module in network.modules() if isinstance(module, nn.Linear) and module is not head]
    return Counter((m.in_features, m.out_features) for m in layers), (head.in_features, head.out_features)


def flops_per_second(shapes: Counter[Shape], rows: int, repeats: int) -> float:
    """Rate over all of `shapes`, each as often as it stands there: all FLOPs over the sum of median seconds."""
    seconds = sum(count * _seconds(shape, rows, repeats) for shape, count in shapes.items())
    return 4 * rows * parameters(shapes) / seconds


def parameters(shapes: Counter[Shape]) -> int:
    return sum(count * in_ * out for (in_, out), count in shapes.items())


def peak_bytes() -> int:
    """Largest resident set that this process has had."""
    status = Path("/proc/self/status")
    # Linux hands the parent's ru_maxrss down through fork and exec; VmHWM begins anew.
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def now() -> float:
    """Seconds on the clock once a GPU has done all that it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def tell(**record: Any) -> int:
    """Print what a side has to tell, one JSON line, with the threads and the peak of this process. The exit status."""
    told = {"threads": torch.get_num_threads(), "peak_bytes": peak_bytes(), **record}
    if torch.cuda.is_available():
        told["gpu_peak_bytes"] = torch.cuda.max_memory_allocated()
    print(json.dumps(told))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.machine", description="Time matrix products.")
    parser.add_argument("model_folder", help="folder of a Hugging Face model, for the shapes")
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args(arguments)
    layers, head = linear_shapes(given.model_folder)
    heads = Counter([head])
    return tell(
        layer_parameters=parameters(layers),
        layer_flops_per_second=flops_per_second(layers, LAYER_ROWS, given.repeats),
        head_parameters=parameters(heads),
        head_flops_per_second=flops_per_second(heads, HEAD_ROWS, given.repeats),
    )


@torch.no_grad()
def _seconds(shape: Shape, rows: int, repeats: int) -> float:
    """Median seconds of x·Wᵀ and then g·W for x [rows, in], g [rows, out], W [out, in]; the first is not counted."""
    in_, out = shape
    x, g, weight = torch.randn(rows, in_), torch.randn(rows, out), torch.randn(out, in_)
    ways: list[Callable[[Tensor, Tensor], Tensor]] = [nn.functional.linear, product]
    if laid_out := lay_out(weight):
        ways.append(lambda given, matrix: laid_out.times(given, None) if matrix is weight else product(given, matrix))
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats + 1):
        for way, spent in zip(ways, seconds, strict=True):
            began = time.perf_counter()
            way(x, weight)
            way(g, weight.t())
            spent.append(time.perf_counter() - began)
    return min(median(spent[1:]) for spent in seconds)


if __name__ == "__main__":
    sys.exit(main())
