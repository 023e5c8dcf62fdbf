"""What every side is given, by rule: prompts, lengths of completions, forms of a group; and how much work that is.

Work is what must be computed, whoever computes it. In one forward whatever the sequences of one mind begin with passes
the layers once; the last token of a completion predicts nothing and is left out. Logits are needed once for each
beginning that a token was drawn behind. Rollouts are one forward. The learner reads the same tokens, forward and once
backward, as frozen weights need the gradient of their input alone: two. A step is three. Attention, adapters, norms and
all that is not a product with a frozen weight are left out, so no share of the attainable can reach 1.

Ours tells how many beginnings it has sampled (`distinct_work`). What a peer samples is not known: it is charged for
every distinct pair of mind and prompt, and for every token of every completion (`forward_work`).

Nothing here needs a package: peers in other environments read it too.
"""

import itertools
import math
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

ROLLOUTS, LEARNER, STEP = 1, 2, 3
"""Forwards, as work counts them."""
SILENT = "benchmarks.ours:Silent"
"""A population whose minds read prompts for themselves, as those with noise do, and have none."""
QUESTIONS = 90 * 90
"""The times table has two-digit factors only, so that every prompt has one length and no row is padded."""
EXAMPLES = 64

Lengths: TypeAlias = Literal["even", "mixed"]


@dataclass(frozen=True, slots=True)
class Form:
    """One way to fill a group of minds × samples rollouts."""

    name: str
    population: str
    minds: int
    samples: int


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens that pass the layers and positions that pass the LM head; backward counts as a second pass."""

    layer_tokens: int
    head_positions: int

    def times(self, forwards: int) -> "Work":
        return Work(forwards * self.layer_tokens, forwards * self.head_positions)

    def seconds(self, machine: Mapping[str, Any]) -> float:
        """At the rate that the machine attains (the record of `benchmarks.machine`)."""
        layers = 2 * machine["layer_parameters"] * self.layer_tokens / machine["layer_flops_per_second"]
        head = 2 * machine["head_parameters"] * self.head_positions / machine["head_flops_per_second"]
        return float(layers + head)


def forward_work(prompt_tokens: Sequence[int], alike: int, readers: int, lengths: Sequence[int]) -> Work:
    """One pass over prompts, each read by `readers`, and over all completions, of `lengths` (at least 1) tokens. All
    prompts begin with the same `alike` tokens."""
    read = sum(prompt_tokens) - alike * (len(prompt_tokens) - 1)
    decoded = sum(lengths) - len(lengths)
    return Work(readers * read + decoded, readers * len(prompt_tokens) + decoded)


def forms(rollouts: int) -> list[Form]:
    """One sample of each mind, about as many minds as samples, no population, and the first without noise.

    The first and the last compute the same products on as many tokens: what they differ by is the population's cost.
    """
    few = max(minds for minds in range(1, math.isqrt(rollouts) + 1) if rollouts % minds == 0)
    return [
        Form(f"ours, {rollouts} minds × 1", "norm-noise", rollouts, 1),
        Form(f"ours, {few} minds × {rollouts // few}", "norm-noise", few, rollouts // few),
        Form("ours, no population", "none", 1, rollouts),
        Form(f"ours, {rollouts} × 1, no noise", SILENT, rollouts, 1),
    ]


def distinct_work(rollouts: Iterable[tuple[Any, tuple[int, ...], tuple[int, ...]]]) -> Work:
    """One pass over the different beginnings of rollouts: mind, prompt and completion of each."""
    read: dict[Any, set[tuple[int, ...]]] = {}
    predicting: dict[Any, set[tuple[int, ...]]] = {}
    for mind, prompt, completion in rollouts:
        sequence = prompt + completion[:-1]
        read.setdefault(mind, set()).update(sequence[: end + 1] for end in range(len(sequence)))
        predicting.setdefault(mind, set()).update(
            sequence[: len(prompt) + written] for written in range(len(completion))
        )
    return Work(sum(map(len, read.values())), sum(map(len, predicting.values())))


def work_of(record: Mapping[str, Any]) -> Work:
    """One pass over what a side has told that it sampled: the median over its counted repeats."""
    tokens, positions = (statistics.median(record[key][1:]) for key in ("layer_tokens", "head_positions"))
    return Work(round(tokens), round(positions))


def times_table(problems: int, examples: int = 0) -> list[str]:
    """The first `problems` (1 to QUESTIONS) questions of the times table, as raw prompts, each behind the same
    `examples` (0 to EXAMPLES) answered ones. With the built-in model: 23 tokens, and 23 for each example."""
    solved = itertools.islice(itertools.product(range(9, 1, -1), repeat=2), examples)
    preface = "".join(f"Q: What is {a} times {b}?\nA: {a} times {b} is {a * b:02d}\n" for a, b in solved)
    factors = itertools.islice(itertools.product(range(99, 9, -1), repeat=2), problems)
    return [f"{preface}Q: What is {a} times {b}?\nA: {a} times {b} is" for a, b in factors]


def completion_lengths(rule: Lengths, rows: int, new_tokens: int) -> list[int]:
    """Tokens of each row's completion. `even`: all `new_tokens`; `mixed`: spread evenly from 1 to `new_tokens`, in an
    order drawn once and for all."""
    if rule == "even":
        return [new_tokens] * rows
    spread = [1 + round(i * (new_tokens - 1) / max(1, rows - 1)) for i in range(rows)]
    random.Random(0).shuffle(spread)
    return spread
