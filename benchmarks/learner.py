"""The learner of ours against a plain one that gives every rollout a row of its own: one run, one table.

Both make one update of a LoRA adapter on all linear layers, and with minds of mu and sigma, from problems × rollouts
completions of random tokens with rewards that alternate 0 and 1, in float32. The plain learner stands in
`benchmarks.peer_rows`. With `--compiled` its model without a population runs through torch.compile as well, for
which a C++ compiler must be there.

How sides take turns stands in `benchmarks.rounds`, how work is counted in `benchmarks.workload`: prompts that rollouts
share count once, so the plain learner is not charged for reading them again and again.

    python -m benchmarks.learner                    256 rollouts of 23 + 4 tokens
    python -m benchmarks.learner --new-tokens 64    256 rollouts of 23 + 64 tokens
    python -m benchmarks.learner --quick            a minute, to see that all sides run; its figures say little
"""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import rounds, sides
from benchmarks.rounds import Record, Side, flags
from benchmarks.workload import LEARNER, completion_lengths, forward_work, work_of

PLAIN, COMPILED = "rows", "compiled rows"
PACKAGES = ("transformers", "peft", "torch")
COMPILERS = ("g++", "clang++", "c++")


@dataclass(frozen=True, slots=True)
class Plan(sides.Plan):
    examples: int
    compiled: bool


def compiler() -> str | None:
    """The C++ compiler that torch.compile can use."""
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, (named,) if named else COMPILERS)), None)


def measure(plan: Plan, model: str) -> Record:
    """Run all rounds; all that was measured, as JSON has it."""
    shape = flags(problems=plan.problems, examples=plan.examples, new_tokens=plan.new_tokens, steps=1 + plan.steps)
    ours = sides.ours(plan, model, "learner", shape)
    plain = ["benchmarks.peer_rows", model, *flags(rollouts=plan.rollouts), *shape]
    with_minds = f"{PLAIN}, {plan.rollouts} minds"
    peers = {with_minds: flags(minds=plan.rollouts), PLAIN: []} | ({COMPILED: ["--compiled"]} if plan.compiled else {})
    every = list(ours.values())
    for place, (name, options) in enumerate(peers.items(), start=1):
        every.insert(2 * place - 1, Side(name, [*plain, *options]))
    measured = rounds.measure(every, model, plan.rounds, plan.threads, plan.only)
    runs = measured.runs
    lengths = completion_lengths("even", plan.problems * plan.rollouts, plan.new_tokens)
    figures = {}
    for name, records in runs.items():
        if name in ours:
            work, compared = work_of(records[0]), {peer: runs[peer] for peer in peers if peer in runs}
        else:
            readers = plan.rollouts if name == with_minds else 1
            work, compared = forward_work(measured.prompt_tokens, measured.alike, readers, lengths), {}
        figures[name] = rounds.figures(records, work.times(LEARNER), measured.machine, compared)
    return sides.told(plan, measured, PACKAGES, figures) | {"new_tokens": sum(lengths), "peers": list(peers)}


def table(measured: Record) -> str:
    plan = measured["plan"]
    return "\n".join(
        sides.lines(
            measured,
            f"one update from {plan['problems']} problems × {plan['rollouts']} rollouts of {plan['new_tokens']} tokens",
            rounds.sides_table(measured["sides"], measured["peers"], measured["new_tokens"]),
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = sides.parser(
        "benchmarks.learner",
        "Time the learner of ours against a plain one.",
        "one round of 2 problems × 4 rollouts",
    )
    sides.add_examples(parser, default=0)
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--compiled", action="store_true", help="the plain learner through torch.compile as well")
    given = sides.parsed(parser, arguments)
    if given.compiled and not compiler():
        print(f"compiled rows are left out: torch.compile needs one of {', '.join(COMPILERS)}, or CXX", file=sys.stderr)
        given.compiled = False
    measured = measure(*sides.checked(parser, given, Plan))
    print(json.dumps(measured) if given.json else table(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
