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
from dataclasses import asdict, dataclass, fields

from benchmarks import rounds
from benchmarks.rounds import Record, Side, flags
from benchmarks.workload import (
    EXAMPLES,
    QUESTIONS,
    ROLLOUTS,
    Lengths,
    completion_lengths,
    forms,
    forward_work,
    work_of,
)

GENERATE, VLLM = "generate", "vLLM"
SALTED, MINDS, SERIAL = "vLLM, requests of minds", "vLLM, minds", "vLLM, mind after mind"
PACKAGES = ("transformers", "peft", "torch")


@dataclass(frozen=True, slots=True)
class Plan:
    problems: int
    rollouts: int
    examples: int
    new_tokens: int
    lengths: Lengths
    rounds: int
    steps: int
    """Counted repeats in each process."""
    threads: int | None
    only: str | None
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
    ours = {form.name: form for form in forms(plan.rollouts)}
    sides = [
        Side(
            form.name,
            [
                "benchmarks.ours",
                model,
                *flags(part="rollouts", population=form.population, minds=form.minds, samples=form.samples),
                *shape,
            ],
            environment=rounds.KEPT_MEMORY,
        )
        for form in ours.values()
    ]
    group = flags(rollouts=plan.rollouts)
    sides.insert(1, Side(GENERATE, ["benchmarks.peer_generate", model, *group, *shape]))
    if plan.vllm_python:
        kinds = {VLLM: "plain", SALTED: "salted", MINDS: "minds"} | ({SERIAL: "serial"} if plan.serial else {})
        sides += [
            Side(name, ["benchmarks.peer_vllm", model, *flags(side=kind), *group, *shape], plan.vllm_python)
            for name, kind in kinds.items()
        ]
    measured = rounds.measure(sides, model, plan.rounds, plan.threads, plan.only)
    runs = measured.runs
    lengths = completion_lengths(plan.lengths, plan.problems * plan.rollouts, plan.new_tokens)
    peers = {name: runs[name] for name in (GENERATE, VLLM) if name in runs}
    of_sides = {}
    for name, records in runs.items():
        readers = plan.rollouts if name in (SALTED, MINDS, SERIAL) else 1
        nominal = forward_work(measured.prompt_tokens, measured.alike, readers, lengths)
        work = work_of(records[0]) if name in ours else nominal
        compared = peers if name in ours else {}
        of_sides[name] = rounds.figures(records, work.times(ROLLOUTS), measured.machine, compared)
    first, *_, silent = ours
    return {
        "plan": asdict(plan),
        "load_before": measured.load_before,
        "versions": rounds.versions_of(PACKAGES),
        "machine": measured.machine,
        "prompt_tokens": measured.prompt_tokens,
        "alike": measured.alike,
        "new_tokens": sum(lengths),
        "peers": list(peers),
        "noise": rounds.noise(runs, first, silent),
        "vllm_minds": {
            name: rounds.ratios(runs[name], runs[SALTED]) for name in (MINDS, SERIAL) if {name, SALTED} <= runs.keys()
        },
        "sides": of_sides,
    }


def table(measured: Record) -> str:
    plan = measured["plan"]
    rows = plan["problems"] * plan["rollouts"]
    new = "1 to " * (plan["lengths"] == "mixed") + str(plan["new_tokens"])
    return "\n".join(
        [
            f"{plan['problems']} problems × {plan['rollouts']} rollouts = {rows} rows, prompts of "
            f"{measured['prompt_tokens'][0]} tokens that begin with the same {measured['alike']}, "
            f"{new} new ones, float32; rounds: {plan['rounds']}, counted "
            f"repeats in each: {plan['steps']}",
            *rounds.heading(measured["versions"], measured["machine"], measured["load_before"]),
            "",
            *rounds.sides_table(measured["sides"], measured["peers"], measured["new_tokens"]),
            *rounds.noise_lines(measured["noise"]),
            *(
                f"{name} over the same requests without minds: {' ('.join(rounds.spread(values))})"
                for name, values in measured["vllm_minds"].items()
            ),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = rounds.parser(
        "benchmarks.rollouts",
        "Time rollouts of ours against those of transformers and vLLM.",
        "one round of 2 problems × 4 rollouts × 4 tokens",
    )
    parser.add_argument("--problems", type=int, default=16, help=f"1 to {QUESTIONS}")
    parser.add_argument("--rollouts", type=int, default=16, help="for each problem, at least 2")
    parser.add_argument("--examples", type=int, default=1, help=f"answered in each prompt, 0 to {EXAMPLES}")
    parser.add_argument("--new-tokens", type=int, help="default: 32, or 128 with --mixed")
    parser.add_argument("--mixed", action="store_true", help="lengths from 1 to --new-tokens")
    parser.add_argument("--vllm-python", metavar="PATH", help="interpreter of an environment that has vLLM")
    parser.add_argument("--serial", action="store_true", help="with --vllm-python: also one mind after another")
    rounds.add_only(parser)
    given = parser.parse_args(arguments)
    given.lengths = "mixed" if given.mixed else "even"
    if given.new_tokens is None:
        given.new_tokens = 128 if given.mixed else 32
    if given.quick:
        given.problems, given.rollouts, given.new_tokens, given.rounds = 2, 4, 4, 1
    model = rounds.checked(
        parser, given, problems=(1, QUESTIONS), rollouts=(2, None), examples=(0, EXAMPLES), new_tokens=(1, None)
    )
    if given.vllm_python and shutil.which(given.vllm_python) is None:
        parser.error(f"--vllm-python must be an interpreter that can be run, got {given.vllm_python}")
    measured = measure(Plan(**{field.name: getattr(given, field.name) for field in fields(Plan)}), model)
    print(json.dumps(measured) if given.json else table(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
