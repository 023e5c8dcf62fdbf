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

import importlib.util
import json
import sys
from collections.abc import Sequence
from statistics import median

from benchmarks import rounds, sides
from benchmarks.rounds import MIB, Record, Side, flags, seconds
from benchmarks.sides import Plan
from benchmarks.workload import LEARNER, ROLLOUTS, STEP, completion_lengths, forward_work, work_of

PEER = "TRL"
PARTS = {"rollouts": ROLLOUTS, "learner": LEARNER}
PACKAGES = ("trl", "transformers", "peft", "torch")


def measure(plan: Plan, model: str) -> Record:
    """Run all rounds; all that was measured, as JSON has it."""
    shape = flags(problems=plan.problems, new_tokens=plan.new_tokens, steps=1 + plan.steps)
    ours = sides.ours(plan, model, "step", shape)
    peer = ["benchmarks.peer_trl", model, *flags(generations=plan.rollouts), *shape]
    every = list(ours.values())
    every.insert(1, Side(PEER, peer))
    every.append(Side(f"{PEER}, memory kept", peer, environment=rounds.KEPT_MEMORY))
    measured = rounds.measure(every, model, plan.rounds, plan.threads, plan.only)
    machine, runs = measured.machine, measured.runs
    lengths = completion_lengths("even", plan.problems * plan.rollouts, plan.new_tokens)
    figures = {}
    for name, records in runs.items():
        nominal = forward_work(measured.prompt_tokens, measured.alike, 1, lengths)
        work = work_of(records[0]) if name in ours else nominal
        peers = {PEER: runs[PEER]} if name != PEER and PEER in runs else {}
        figures[name] = rounds.figures(records, work.times(STEP), machine, peers)
        if name in ours:
            for part, forwards in PARTS.items():
                spent = median(seconds(record, part) for record in records)
                share = work.times(forwards).seconds(machine) / spent
                figures[name][part] = {"seconds": spent, "share": share}
    return sides.told(plan, measured, PACKAGES, figures)


def table(measured: Record) -> str:
    """For a reader: seconds per step, ratios with their range over rounds, MiB, and shares."""
    plan = measured["plan"]
    rows = [("", "s/step", "rollouts", "learner", "TRL/this", "range", "peak MiB", "of attainable")]
    for name, side in measured["sides"].items():
        own = (f"{side[part]['seconds']:.2f} ({side[part]['share']:.0%})" for part in PARTS if part in side)
        spent = tuple(own) or ("", "")
        ratio = rounds.spread(side["ratios"][PEER]) if PEER in side["ratios"] else ("", "")
        rows.append(
            (name, f"{side['seconds']:.2f}", *spent, *ratio, f"{side['peak_bytes'] / MIB:.0f}", f"{side['share']:.0%}")
        )
    what = f"{plan['problems']} problems × {plan['rollouts']} rollouts of {plan['new_tokens']} tokens"
    return "\n".join(sides.lines(measured, what, rounds.aligned(rows)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = sides.parser(
        "benchmarks.step", "Time a step of ours against one of TRL.", "one round of 2 problems × 4 rollouts"
    )
    parser.add_argument("--new-tokens", type=int, default=4)
    given = sides.parsed(parser, arguments)
    if importlib.util.find_spec("trl") is None:
        parser.error("TRL is not installed; run: make bench, or pip install 'ttrl-pop[bench]'")
    measured = measure(*sides.checked(parser, given, Plan))
    print(json.dumps(measured) if given.json else table(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
