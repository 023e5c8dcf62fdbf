"""One step of ours against one step of TRL's GRPOTrainer at equal work: one run, one table.

Both sides sample problems × rollouts completions of the same prompts with the same model in float32 and make one
update of a LoRA adapter on all linear layers from all of them, with rewards that alternate 0 and 1. How sides take
turns stands in `benchmarks.rounds`, how work is counted in `benchmarks.workload`. TRL has no minds: its work is that of
ours without a population, and it is not charged for what it computes twice.

The peer is the fastest TRL that was found: 1.14.2 with micro-batches of 64 rows, neither gradient checkpointing nor
a reference model, and one update per batch, which spares it a forward for old log-probs. Later is not faster: 1.16.0
computes logits on prompt positions as well where there is no Triton, as on a CPU.

The last form has minds that read every prompt for themselves, and no noise, mu or sigma: against the first it tells
what the population costs, at equal work.

    python -m benchmarks.step            the full measurement
    python -m benchmarks.step --quick    a minute, to see that both sides run; its figures say little
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any

from benchmarks import rounds
from benchmarks.rounds import MIB, Record, Side, flags, seconds
from benchmarks.workload import (
    LEARNER,
    QUESTIONS,
    ROLLOUTS,
    STEP,
    completion_lengths,
    forms,
    forward_work,
    work_of,
)

PEER = "TRL"
PARTS = {"rollouts": ROLLOUTS, "learner": LEARNER}
PACKAGES = ("trl", "transformers", "peft", "torch")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run; `steps` are the counted ones of a process."""

    problems: int
    rollouts: int
    new_tokens: int
    rounds: int
    steps: int
    threads: int | None
    only: str | None


def measure(plan: Plan, model: str) -> Record:
    """Run all rounds; all that was measured, as JSON has it."""
    shape = flags(problems=plan.problems, new_tokens=plan.new_tokens, steps=1 + plan.steps)
    ours = {form.name: form for form in forms(plan.rollouts)}
    sides = [
        Side(
            form.name,
            [
                "benchmarks.ours",
                model,
                *flags(population=form.population, minds=form.minds, samples=form.samples),
                *shape,
            ],
            environment=rounds.KEPT_MEMORY,
        )
        for form in ours.values()
    ]
    peer = ["benchmarks.peer_trl", model, *flags(generations=plan.rollouts), *shape]
    sides.insert(1, Side(PEER, peer))
    sides.append(Side(f"{PEER}, memory kept", peer, environment=rounds.KEPT_MEMORY))
    measured = rounds.measure(sides, model, plan.rounds, plan.threads, plan.only)
    machine, runs = measured.machine, measured.runs
    lengths = completion_lengths("even", plan.problems * plan.rollouts, plan.new_tokens)
    of_sides = {}
    for name, records in runs.items():
        nominal = forward_work(measured.prompt_tokens, measured.alike, 1, lengths)
        work = work_of(records[0]) if name in ours else nominal
        peers = {PEER: runs[PEER]} if name != PEER and PEER in runs else {}
        of_sides[name] = rounds.figures(records, work.times(STEP), machine, peers)
        if name in ours:
            for part, forwards in PARTS.items():
                spent = median(seconds(record, part) for record in records)
                share = work.times(forwards).seconds(machine) / spent
                of_sides[name][part] = {"seconds": spent, "share": share}
    first, *_, silent = ours
    return {
        "plan": asdict(plan),
        "load_before": measured.load_before,
        "versions": rounds.versions_of(PACKAGES),
        "machine": machine,
        "prompt_tokens": measured.prompt_tokens,
        "alike": measured.alike,
        "noise": rounds.noise(runs, first, silent),
        "sides": of_sides,
    }


def table(measured: Record) -> str:
    """For a reader: seconds per step, ratios with their range over rounds, MiB, and shares."""
    plan: dict[str, Any] = measured["plan"]
    rows = [("", "s/step", "rollouts", "learner", "TRL/this", "range", "peak MiB", "of attainable")]
    for name, side in measured["sides"].items():
        own = (f"{side[part]['seconds']:.2f} ({side[part]['share']:.0%})" for part in PARTS if part in side)
        spent = tuple(own) or ("", "")
        ratio = rounds.spread(side["ratios"][PEER]) if PEER in side["ratios"] else ("", "")
        rows.append(
            (name, f"{side['seconds']:.2f}", *spent, *ratio, f"{side['peak_bytes'] / MIB:.0f}", f"{side['share']:.0%}")
        )
    return "\n".join(
        [
            f"{plan['problems']} problems × {plan['rollouts']} rollouts × {plan['new_tokens']} tokens, prompts of "
            f"{measured['prompt_tokens'][0]} that begin with the same {measured['alike']}, "
            f"float32; rounds: {plan['rounds']}, counted steps in each: "
            f"{plan['steps']}",
            *rounds.heading(measured["versions"], measured["machine"], measured["load_before"]),
            "",
            *rounds.aligned(rows),
            *rounds.noise_lines(measured["noise"]),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = rounds.parser(
        "benchmarks.step", "Time a step of ours against one of TRL.", "one round of 2 problems × 4 rollouts"
    )
    parser.add_argument("--problems", type=int, default=16, help=f"1 to {QUESTIONS}")
    parser.add_argument("--rollouts", type=int, default=16, help="for each problem, at least 2")
    parser.add_argument("--new-tokens", type=int, default=4)
    rounds.add_only(parser)
    given: argparse.Namespace = parser.parse_args(arguments)
    if given.quick:
        given.problems, given.rollouts, given.rounds = 2, 4, 1
    if importlib.util.find_spec("trl") is None:
        parser.error("TRL is not installed; run: make bench, or pip install 'ttrl-pop[bench]'")
    model = rounds.checked(parser, given, problems=(1, QUESTIONS), rollouts=(2, None), new_tokens=(1, None))
    plan = Plan(**{field.name: getattr(given, field.name) for field in fields(Plan)})
    measured = measure(plan, model)
    print(json.dumps(measured) if given.json else table(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
