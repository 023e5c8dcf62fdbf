"""Rollouts of ours against `generate` of transformers and, where there is one, vLLM: one run, one table.

All write problems × rollouts completions of the same prompts with the same model in float32 at temperature 1, of
lengths that are given: all of `--new-tokens`, or with `--mixed` spread evenly from 1 to `--new-tokens`. Nothing ends a
completion early. Ours has an adapter attached and, in two forms, minds; `generate` has neither.

How sides take turns stands in `benchmarks.rounds`, how work is counted in `benchmarks.workload`: peers have the work of
ours without a population. `generate` has no way to let a row leave: with mixed lengths it computes all rows until the
longest has ended, and is not charged for it.

vLLM lives in an environment of its own: `--vllm-python PATH` names its interpreter, and adds vLLM as its users have it
and with the minds of the backend `vllm`, beside the same requests without minds (`benchmarks.peer_vllm`). The second
line below the table is what the minds cost there; `--serial` adds one mind after another.

    python -m benchmarks.rollouts            256 rows, 46 + 32 tokens
    python -m benchmarks.rollouts --mixed    256 rows, 46 tokens + 1 to 128
    python -m benchmarks.rollouts --quick    a minute, to see that all sides run; its figures say little
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import rounds, sides
from benchmarks.rounds import Record, Side, flags
from benchmarks.workload import ROLLOUTS, Lengths, completion_lengths, forward_work, work_of

GENERATE, VLLM = "generate", "vLLM"
SALTED, MINDS, SERIAL = "vLLM, requests of minds", "vLLM, minds", "vLLM, mind after mind"
PACKAGES = ("transformers", "peft", "torch")


@dataclass(frozen=True, slots=True)
class Plan(sides.Plan):
    examples: int
    lengths: Lengths
    vllm_python: str | None
    """Interpreter of the environment that has vLLM."""
    serial: bool


def measure(plan: Plan, model: str) -> Record:
    """Run all rounds; all that was measured, as JSON has it."""
    shape = flags(
        problems=plan.problems,
        examples=plan.examples,
        new_tokens=plan.new_tokens,
        lengths=plan.lengths,
        steps=1 + plan.steps,
    )
    ours = sides.ours(plan, model, "rollouts", shape)
    group = flags(rollouts=plan.rollouts)
    every = list(ours.values())
    every.insert(1, Side(GENERATE, ["benchmarks.peer_generate", model, *group, *shape]))
    if plan.vllm_python:
        kinds = {VLLM: "plain", SALTED: "salted", MINDS: "minds"} | ({SERIAL: "serial"} if plan.serial else {})
        every += [
            Side(name, ["benchmarks.peer_vllm", model, *flags(side=kind), *group, *shape], plan.vllm_python)
            for name, kind in kinds.items()
        ]
    measured = rounds.measure(every, model, plan.rounds, plan.threads, plan.only)
    runs = measured.runs
    lengths = completion_lengths(plan.lengths, plan.problems * plan.rollouts, plan.new_tokens)
    peers = {name: runs[name] for name in (GENERATE, VLLM) if name in runs}
    figures = {}
    for name, records in runs.items():
        readers = plan.rollouts if name in (SALTED, MINDS, SERIAL) else 1
        nominal = forward_work(measured.prompt_tokens, measured.alike, readers, lengths)
        work = work_of(records[0]) if name in ours else nominal
        compared = peers if name in ours else {}
        figures[name] = rounds.figures(records, work.times(ROLLOUTS), measured.machine, compared)
    return sides.told(plan, measured, PACKAGES, figures) | {
        "new_tokens": sum(lengths),
        "peers": list(peers),
        "vllm_minds": {
            name: rounds.ratios(runs[name], runs[SALTED]) for name in (MINDS, SERIAL) if {name, SALTED} <= runs.keys()
        },
    }


def table(measured: Record) -> str:
    plan = measured["plan"]
    rows = plan["problems"] * plan["rollouts"]
    new = "1 to " * (plan["lengths"] == "mixed") + str(plan["new_tokens"])
    return "\n".join(
        [
            *sides.lines(
                measured,
                f"{plan['problems']} problems × {plan['rollouts']} rollouts = {rows} rows of {new} new tokens",
                rounds.sides_table(measured["sides"], measured["peers"], measured["new_tokens"]),
            ),
            *(
                f"{name} over the same requests without minds: {' ('.join(rounds.spread(values))})"
                for name, values in measured["vllm_minds"].items()
            ),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = sides.parser(
        "benchmarks.rollouts",
        "Time rollouts of ours against those of transformers and vLLM.",
        "one round of 2 problems × 4 rollouts × 4 tokens",
    )
    sides.add_examples(parser, default=1)
    parser.add_argument("--new-tokens", type=int, help="default: 32, or 128 with --mixed")
    parser.add_argument("--mixed", action="store_true", help="lengths from 1 to --new-tokens")
    parser.add_argument("--vllm-python", metavar="PATH", help="interpreter of an environment that has vLLM")
    parser.add_argument("--serial", action="store_true", help="with --vllm-python: also one mind after another")
    given = sides.parsed(parser, arguments)
    given.lengths = "mixed" if given.mixed else "even"
    if given.quick:
        given.new_tokens = 4
    elif given.new_tokens is None:
        given.new_tokens = 128 if given.mixed else 32
    if given.vllm_python and shutil.which(given.vllm_python) is None:
        parser.error(f"--vllm-python must be an interpreter that can be run, got {given.vllm_python}")
    measured = measure(*sides.checked(parser, given, Plan))
    print(json.dumps(measured) if given.json else table(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
