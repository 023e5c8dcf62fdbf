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
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from statistics import median
from typing import Any

from benchmarks.peer_trl import QUESTIONS
from ttrl_pop.errors import UsageError
from ttrl_pop.models import locate

PEER = "TRL"
PACKAGES = ("trl", "transformers", "peft", "torch")
MIB = 1 << 20
BUSY = 0.5
"""Load average above which a measurement is disturbed."""

Record = dict[str, Any]
"""What a process of one side printed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run; `steps` are the counted ones of a process."""

    problems: int
    rollouts: int
    new_tokens: int
    rounds: int
    steps: int
    threads: int | None


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
    return [
        Form(f"ours, {rollouts} minds × 1", "norm-noise", rollouts, 1),
        Form(f"ours, {few} minds × {rollouts // few}", "norm-noise", few, rollouts // few),
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


def measure(plan: Plan, model: str) -> Record:
    """Run all rounds; all that was measured, as JSON has it."""
    load = os.getloadavg()[0]
    if load > BUSY:
        print(f"the machine is not idle (load average {load:.1f}); these figures will say little", file=sys.stderr)
    shape = _flags(problems=plan.problems, new_tokens=plan.new_tokens, steps=1 + plan.steps)
    ours = {form.name: form for form in forms(plan.rollouts)}
    commands = {
        form.name: [
            "benchmarks.ours",
            model,
            *_flags(population=form.population, minds=form.minds, samples=form.samples),
            *shape,
        ]
        for form in ours.values()
    }
    commands[PEER] = ["benchmarks.peer_trl", model, *_flags(generations=plan.rollouts), *shape]
    first, *others = ours
    names = [first, PEER, *others]
    runs: dict[str, list[Record]] = {name: [] for name in names}
    machines: list[Record] = []
    for number in range(plan.rounds):
        print(f"round {number + 1} of {plan.rounds}", file=sys.stderr)
        machines.append(run(["benchmarks.machine", model], plan.threads))
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            record = run(commands[name], plan.threads)
            runs[name].append(record)
            print(f"  {name}: {_seconds(record):.2f} s/step", file=sys.stderr)
    threads = {record["threads"] for records in [*runs.values(), machines] for record in records}
    if len(threads) > 1:
        raise SystemExit(f"all processes must have one number of threads, got {sorted(threads)}; pass --threads")
    machine = machines[0] | {
        key: median(record[key] for record in machines) for key in ("layer_flops_per_second", "head_flops_per_second")
    }
    lengths = runs[first][0]["prompt_tokens"]
    learning = learner_work(lengths, plan.rollouts, plan.new_tokens).seconds(machine)
    sides = {}
    for name in names:
        readers = ours[name].readers if name in ours else 1
        reading = rollout_work(lengths, readers, plan.rollouts, plan.new_tokens).seconds(machine)
        sides[name] = figures(runs[name], reading, learning)
        if name != PEER:
            sides[name] |= comparison(runs[name], runs[PEER], reading, learning)
    return {
        "plan": asdict(plan),
        "load_before": load,
        "versions": {name: version(name) for name in PACKAGES},
        "machine": machine,
        "prompt_tokens": lengths,
        "sides": sides,
    }


def figures(records: Sequence[Record], reading: float, learning: float) -> Record:
    """Of either side, from one record for each round; `reading` and `learning` are attainable seconds."""
    rounds = [_seconds(record) for record in records]
    return {
        "seconds": median(rounds),
        "rounds": rounds,
        "peak_bytes": max(record["peak_bytes"] for record in records),
        "share": (reading + learning) / median(rounds),
    }


def comparison(records: Sequence[Record], peers: Sequence[Record], reading: float, learning: float) -> Record:
    """Of ours: the ratio of the peer's seconds to ours in each round, and both parts of the step."""
    ratios = [_seconds(peer) / _seconds(record) for record, peer in zip(records, peers, strict=True)]
    rollouts, learner = (median(_seconds(record, key) for record in records) for key in ("rollouts", "learner"))
    return {
        "ratio": median(ratios),
        "ratios": ratios,
        "rollout_seconds": rollouts,
        "rollout_share": reading / rollouts,
        "learner_seconds": learner,
        "learner_share": learning / learner,
    }


def table(measured: Record) -> str:
    """For a reader: seconds per step, ratios with their range over rounds, MiB, and shares."""
    plan, machine, versions = measured["plan"], measured["machine"], measured["versions"]
    rows = [("", "s/step", "rollouts", "learner", "TRL/ours", "range", "peak MiB", "of attainable")]
    for name, side in measured["sides"].items():
        parts = ("", "", "", "")
        if name != PEER:
            parts = (
                f"{side['rollout_seconds']:.2f}",
                f"{side['learner_seconds']:.2f}",
                f"{side['ratio']:.2f}",
                f"{min(side['ratios']):.2f}–{max(side['ratios']):.2f}",
            )
        rows.append((name, f"{side['seconds']:.2f}", *parts, f"{side['peak_bytes'] / MIB:.0f}", f"{side['share']:.0%}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        right = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *right]))
    return "\n".join(
        [
            f"{plan['problems']} problems × {plan['rollouts']} rollouts × {plan['new_tokens']} tokens, float32, "
            f"{machine['threads']} threads; rounds: {plan['rounds']}, counted steps in each: {plan['steps']}",
            "  ".join(f"{name} {number}" for name, number in versions.items()),
            f"attainable: {machine['layer_flops_per_second'] / 1e9:.0f} GFLOP/s in the layers, "
            f"{machine['head_flops_per_second'] / 1e9:.0f} in the LM head; load average before: "
            f"{measured['load_before']:.1f}",
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
    if not 1 <= given.problems <= QUESTIONS:
        parser.error(f"--problems is 1 to {QUESTIONS}, got {given.problems}")
    for name, least in (("rollouts", 2), ("new_tokens", 1), ("rounds", 1), ("steps", 1)):
        if getattr(given, name) < least:
            parser.error(f"--{name.replace('_', '-')} is at least {least}, got {getattr(given, name)}")
    if importlib.util.find_spec("trl") is None:
        parser.error("TRL is not installed; run: make bench, or pip install 'ttrl-pop[bench]'")
    try:
        model = locate(given.model)
    except UsageError as error:
        parser.error(str(error))
    plan = Plan(**{field.name: getattr(given, field.name) for field in fields(Plan)})
    measured = measure(plan, model)
    print(json.dumps(measured) if given.json else table(measured))
    return 0


def _flags(**values: object) -> list[str]:
    return [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def _seconds(record: Record, key: str = "seconds") -> float:
    """Median over the counted steps."""
    return float(median(record[key][1:]))


if __name__ == "__main__":
    sys.exit(main())
