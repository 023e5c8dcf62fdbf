"""One step of ours against one step of TRL's GRPOTrainer at equal work: one run, one table.

Both sides sample problems × rollouts completions of the same prompts with the same model in float32 and make one
update of a LoRA adapter on all linear layers from all of them, with rewards that alternate 0 and 1. Each runs in a
process of its own with the same number of threads. A round runs every side once; rounds begin with another side each,
so that a machine that slows down slows all. The first step of a process is warm-up and not counted.

The peer is the fastest TRL that was found: 1.14.2 with micro-batches of 64 rows, neither gradient checkpointing nor
a reference model, and one update per batch, which spares it a forward for old log-probs. Later is not faster: 1.16.0
computes logits on prompt positions as well where there is no Triton, as on a CPU.

Share of the attainable: the seconds that the step's matrix products would take at the rate measured in the same run
(`benchmarks.machine`), over the seconds that the step took. Counted are
1. rollouts: every distinct pair of mind and prompt read once, then new_tokens − 1 tokens for each rollout; logits where
   a token is drawn;
2. learner: prompt and completion of each rollout, but for its last token, forward and once backward, as frozen weights
   need the gradient of their input alone; logits at completion positions.
Attention, adapters and all that is not a product are left out, so no step can reach 1. TRL has no minds: its products
are those of ours without a population.

    python -m benchmarks.step            the full measurement
    python -m benchmarks.step --quick    a minute, to see that both sides run; its figures say little
"""

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median
from typing import Any

from benchmarks.peer_trl import QUESTIONS
from ttrl_pop.errors import UsageError
from ttrl_pop.models import locate

PEER = "TRL"
PACKAGES = ("trl", "transformers", "peft", "torch")
MIB = 1 << 20

Record = dict[str, Any]
"""What a process of one side printed."""


@dataclass(frozen=True, slots=True)
class Form:
    """One way to fill a group of minds × samples rollouts."""

    name: str
    population: str
    minds: int
    samples: int

    @property
    def readers(self) -> int:
        """How often a prompt must be read: by every mind that reads it differently."""
        return 1 if self.population == "none" else self.minds


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens that pass the layers and positions that pass the LM head in a step; backward counts as a second pass."""

    layer_tokens: int
    head_positions: int

    def seconds(self, machine: Record) -> float:
        """At the rate that the machine attains."""
        layers = 2 * machine["layer_parameters"] * self.layer_tokens / machine["layer_flops_per_second"]
        head = 2 * machine["head_parameters"] * self.head_positions / machine["head_flops_per_second"]
        return float(layers + head)


def forms(rollouts: int) -> list[Form]:
    """One sample of each mind, about as many minds as samples, and no population."""
    few = max(minds for minds in range(1, math.isqrt(rollouts) + 1) if rollouts % minds == 0)
    mixed = Form(f"ours, {few} minds × {rollouts // few}", "norm-noise", few, rollouts // few)
    return [
        Form(f"ours, {rollouts} minds × 1", "norm-noise", rollouts, 1),
        mixed,
        Form("ours, no population", "none", 1, rollouts),
    ]


def rollout_work(prompt_tokens: Sequence[int], readers: int, rollouts: int, new_tokens: int) -> Work:
    """Each prompt read by `readers`, then `rollouts` completions of each."""
    problems = len(prompt_tokens)
    decoded = problems * rollouts * (new_tokens - 1)
    return Work(readers * sum(prompt_tokens) + decoded, readers * problems + decoded)


def learner_work(prompt_tokens: Sequence[int], rollouts: int, new_tokens: int) -> Work:
    """Forward and backward over all rollouts, each with its prompt."""
    tokens = rollouts * sum(length + new_tokens - 1 for length in prompt_tokens)
    return Work(2 * tokens, 2 * rollouts * new_tokens * len(prompt_tokens))


def measure(given: argparse.Namespace, model: str) -> Record:
    """Run all rounds; all that was measured, as JSON has it."""
    sides: dict[str, list[str]] = {
        form.name: [
            "benchmarks.ours",
            model,
            *_flags(population=form.population, minds=form.minds, samples=form.samples),
        ]
        for form in forms(given.rollouts)
    }
    sides[PEER] = ["benchmarks.peer_trl", model, *_flags(generations=given.rollouts)]
    # The peer stands second, so that rounds go ours, TRL, ours, …
    names = sorted(sides, key=lambda name: [*sides].index(name) if name != PEER else 0.5)
    shape = _flags(problems=given.problems, new_tokens=given.new_tokens, steps=1 + given.steps)
    runs: dict[str, list[Record]] = {name: [] for name in names}
    machines: list[Record] = []
    for number in range(given.rounds):
        print(f"round {number + 1} of {given.rounds}", file=sys.stderr)
        machines.append(run(["benchmarks.machine", model], given.threads))
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            record = run([*sides[name], *shape], given.threads)
            runs[name].append(record)
            print(f"  {name}: {_seconds(record):.2f} s/step", file=sys.stderr)
    threads = {record["threads"] for records in [*runs.values(), machines] for record in records}
    if len(threads) > 1:
        raise SystemExit(f"all processes must have one number of threads, got {sorted(threads)}; pass --threads")
    machine = machines[0] | {
        key: median(record[key] for record in machines) for key in ("layer_flops_per_second", "head_flops_per_second")
    }
    lengths = runs[forms(given.rollouts)[0].name][0]["prompt_tokens"]
    return {
        "problems": given.problems,
        "rollouts": given.rollouts,
        "new_tokens": given.new_tokens,
        "steps": given.steps,
        "versions": {name: version(name) for name in PACKAGES},
        "machine": machine,
        "prompt_tokens": lengths,
        "sides": {name: side(name, runs, given, lengths, machine) for name in names},
    }


def side(
    name: str, runs: dict[str, list[Record]], given: argparse.Namespace, prompt_tokens: Sequence[int], machine: Record
) -> Record:
    """The figures of one side: medians over rounds of medians over counted steps."""
    form = next((form for form in forms(given.rollouts) if form.name == name), None)
    readers = form.readers if form else 1
    rollout_seconds = rollout_work(prompt_tokens, readers, given.rollouts, given.new_tokens).seconds(machine)
    learner_seconds = learner_work(prompt_tokens, given.rollouts, given.new_tokens).seconds(machine)
    rounds = [_seconds(record) for record in runs[name]]
    figures: Record = {
        "seconds": median(rounds),
        "rounds": rounds,
        "peak_bytes": max(record["peak_bytes"] for record in runs[name]),
        "share": (rollout_seconds + learner_seconds) / median(rounds),
    }
    if form is None:
        return figures
    ratios = [_seconds(peer) / seconds for peer, seconds in zip(runs[PEER], rounds, strict=True)]
    spent = {key: median(_seconds(record, key) for record in runs[name]) for key in ("rollouts", "learner")}
    return figures | {
        "ratio": median(ratios),
        "ratios": ratios,
        "rollout_seconds": spent["rollouts"],
        "rollout_share": rollout_seconds / spent["rollouts"],
        "learner_seconds": spent["learner"],
        "learner_share": learner_seconds / spent["learner"],
    }


def table(measured: Record) -> str:
    """All of it for a reader: seconds per step, ratios with their range over rounds, MiB, and shares."""
    machine, versions = measured["machine"], measured["versions"]
    rates = [f"{machine[f'{part}_flops_per_second'] / 1e9:.0f}" for part in ("layer", "head")]
    rounds = len(next(iter(measured["sides"].values()))["rounds"])
    rows = [("", "s/step", "rollouts", "learner", "TRL/ours", "range", "peak MiB", "of attainable")]
    for name, figures in measured["sides"].items():
        ours = name != PEER
        rows.append(
            (
                name,
                f"{figures['seconds']:.2f}",
                f"{figures['rollout_seconds']:.2f}" if ours else "",
                f"{figures['learner_seconds']:.2f}" if ours else "",
                f"{figures['ratio']:.2f}" if ours else "",
                f"{min(figures['ratios']):.2f}–{max(figures['ratios']):.2f}" if ours else "",
                f"{figures['peak_bytes'] / MIB:.0f}",
                f"{figures['share']:.0%}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(cells))
        for cells in (zip(row, widths, strict=True) for row in rows)
    ]
    return "\n".join(
        [
            f"{measured['problems']} problems × {measured['rollouts']} rollouts × {measured['new_tokens']} tokens, "
            f"float32, {machine['threads']} threads, rounds: {rounds}, counted steps in each: {measured['steps']}",
            "  ".join(f"{name} {number}" for name, number in versions.items()),
            f"attainable: {rates[0]} GFLOP/s in the layers, {rates[1]} in the LM head",
            "",
            *lines,
        ]
    )


def run(command: Sequence[str], threads: int | None) -> Record:
    """The JSON line that `python -m` of `command` prints last; its errors are shown only where it fails."""
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{done.stderr}\n{' '.join(command)}: exit status {done.returncode}")
    record: Record = json.loads(done.stdout.splitlines()[-1])
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step", description="Time a step of ours against one of TRL."
    )
    parser.add_argument("--model", default="smollm2", help="as for ttrl-pop; a folder or smollm2")
    parser.add_argument("--problems", type=int, default=16, help=f"1 to {QUESTIONS}")
    parser.add_argument("--rollouts", type=int, default=16, help="for each problem, at least 2")
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="counted steps of each process, after one of warm-up")
    parser.add_argument("--threads", type=int, help="of each process; default: as torch chooses")
    parser.add_argument("--quick", action="store_true", help="one round of 2 problems × 4 rollouts")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    given = parser.parse_args(arguments)
    if given.quick:
        given.problems, given.rollouts, given.rounds = 2, 4, 1
    for name, low, high in (
        ("problems", 1, QUESTIONS),
        ("rollouts", 2, None),
        ("new_tokens", 1, None),
        ("rounds", 1, None),
        ("steps", 1, None),
    ):
        value = getattr(given, name)
        if value < low or (high and value > high):
            parser.error(
                f"--{name.replace('_', '-')} is {f'{low} to {high}' if high else f'at least {low}'}, got {value}"
            )
    if importlib.util.find_spec("trl") is None:
        parser.error("TRL is not installed; run: make bench, or pip install 'ttrl-pop[bench]'")
    try:
        model = locate(given.model)
    except UsageError as error:
        parser.error(str(error))
    measured = measure(given, model)
    print(json.dumps(measured) if given.json else table(measured))
    return 0


def _flags(**values: object) -> list[str]:
    return [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def _seconds(record: Record, key: str = "seconds") -> float:
    """Median over the counted steps."""
    return float(median(record[key][1:]))


if __name__ == "__main__":
    sys.exit(main())
