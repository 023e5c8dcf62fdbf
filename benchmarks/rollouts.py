"""Rollouts of ours against `generate` of transformers: one run, one table.

All write problems × rollouts completions of the same prompts with the same model in float32 at temperature 1, of
lengths that are given: all of `--new-tokens`, or with `--mixed` spread evenly from 1 to `--new-tokens`. Nothing ends a
completion early. Ours has an adapter attached and, in two forms, minds; `generate` has neither.

How sides take turns stands in `benchmarks.rounds`, how work is counted in `benchmarks.workload`: peers have the work of
ours without a population. `generate` has no way to let a row leave: with mixed lengths it computes all rows until the
longest has ended, and is not charged for it.

vLLM has a script of its own, `benchmarks.peer_vllm`.

    python -m benchmarks.rollouts            256 rows, 46 + 32 tokens
    python -m benchmarks.rollouts --mixed    256 rows, 46 tokens + 1 to 128
    python -m benchmarks.rollouts --quick    a minute, to see that all sides run; its figures say little
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from benchmarks import rounds
from benchmarks.rounds import Record, Side, flags
from benchmarks.workload import EXAMPLES, QUESTIONS, ROLLOUTS, Lengths, completion_lengths, forms, forward_work

GENERATE = "generate"
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
        )
        for form in ours.values()
    ]
    sides.insert(1, Side(GENERATE, ["benchmarks.peer_generate", model, *flags(rollouts=plan.rollouts), *shape]))
    measured = rounds.measure(sides, model, plan.rounds, plan.threads)
    runs = measured.runs
    lengths = completion_lengths(plan.lengths, plan.problems * plan.rollouts, plan.new_tokens)
    peers = {GENERATE: runs[GENERATE]}
    of_sides = {}
    for name, records in runs.items():
        work = forward_work(measured.prompt_tokens, ours[name].readers if name in ours else 1, lengths)
        compared = peers if name in ours else {}
        of_sides[name] = rounds.figures(records, work.times(ROLLOUTS), measured.machine, compared)
    first, *_, silent = ours
    return {
        "plan": asdict(plan),
        "load_before": measured.load_before,
        "versions": rounds.versions_of(PACKAGES),
        "machine": measured.machine,
        "prompt_tokens": measured.prompt_tokens,
        "new_tokens": sum(lengths),
        "peers": list(peers),
        "noise": rounds.ratios(runs[first], runs[silent]),
        "sides": of_sides,
    }


def table(measured: Record) -> str:
    plan = measured["plan"]
    rows = plan["problems"] * plan["rollouts"]
    new = "1 to " * (plan["lengths"] == "mixed") + str(plan["new_tokens"])
    return "\n".join(
        [
            f"{plan['problems']} problems × {plan['rollouts']} rollouts = {rows} rows, prompts of "
            f"{measured['prompt_tokens'][0]} tokens, {new} new ones, float32; rounds: {plan['rounds']}, counted "
            f"repeats in each: {plan['steps']}",
            *rounds.heading(measured["versions"], measured["machine"], measured["load_before"]),
            "",
            *rounds.sides_table(measured["sides"], measured["peers"], measured["new_tokens"]),
            "",
            rounds.noise_line(measured["noise"]),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = rounds.parser(
        "benchmarks.rollouts",
        "Time rollouts of ours against those of transformers.",
        "one round of 2 problems × 4 rollouts × 4 tokens",
    )
    parser.add_argument("--problems", type=int, default=16, help=f"1 to {QUESTIONS}")
    parser.add_argument("--rollouts", type=int, default=16, help="for each problem, at least 2")
    parser.add_argument("--examples", type=int, default=1, help=f"answered in each prompt, 0 to {EXAMPLES}")
    parser.add_argument("--new-tokens", type=int, help="default: 32, or 128 with --mixed")
    parser.add_argument("--mixed", action="store_true", help="lengths from 1 to --new-tokens")
    given = parser.parse_args(arguments)
    given.lengths = "mixed" if given.mixed else "even"
    if given.new_tokens is None:
        given.new_tokens = 128 if given.mixed else 32
    if given.quick:
        given.problems, given.rollouts, given.new_tokens, given.rounds = 2, 4, 4, 1
    model = rounds.checked(
        parser, given, problems=(1, QUESTIONS), rollouts=(2, None), examples=(0, EXAMPLES), new_tokens=(1, None)
    )
    measured = measure(Plan(**{field.name: getattr(given, field.name) for field in fields(Plan)}), model)
    print(json.dumps(measured) if given.json else table(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
