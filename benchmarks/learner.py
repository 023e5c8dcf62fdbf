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
from dataclasses import asdict, dataclass, fields

from benchmarks import rounds
from benchmarks.rounds import Record, Side, flags
from benchmarks.workload import EXAMPLES, LEARNER, QUESTIONS, completion_lengths, forms, forward_work, work_of

PLAIN, COMPILED = "rows", "compiled rows"
PACKAGES = ("transformers", "peft", "torch")
COMPILERS = ("g++", "clang++", "c++")


@dataclass(frozen=True, slots=True)
class Plan:
    problems: int
    rollouts: int
    examples: int
    new_tokens: int
    rounds: int
    steps: int
    """Counted updates in each process."""
    threads: int | None
    only: str | None
    compiled: bool


def compiler() -> str | None:
    """The C++ compiler that torch.compile can use."""
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, (named,) if named else COMPILERS)), None)


def measure(plan: Plan, model: str) -> Record:
    """Run all rounds; all that was measured, as JSON has it."""
    shape = flags(problems=plan.problems, examples=plan.examples, new_tokens=plan.new_tokens, steps=1 + plan.steps)
    ours = {form.name: form for form in forms(plan.rollouts)}
    readers: dict[str, int] = {}
    sides = [
        Side(
            form.name,
            [
                "benchmarks.ours",
                model,
                *flags(part="learner", population=form.population, minds=form.minds, samples=form.samples),
                *shape,
            ],
            environment=rounds.KEPT_MEMORY,
        )
        for form in ours.values()
    ]
    plain = ["benchmarks.peer_rows", model, *flags(rollouts=plan.rollouts), *shape]
    with_minds = f"{PLAIN}, {plan.rollouts} minds"
    peers = {with_minds: flags(minds=plan.rollouts), PLAIN: []} | ({COMPILED: ["--compiled"]} if plan.compiled else {})
    for place, (name, options) in enumerate(peers.items(), start=1):
        sides.insert(2 * place - 1, Side(name, [*plain, *options]))
        readers[name] = plan.rollouts if name == with_minds else 1
    measured = rounds.measure(sides, model, plan.rounds, plan.threads, plan.only)
    runs = measured.runs
    lengths = completion_lengths("even", plan.problems * plan.rollouts, plan.new_tokens)
    of_sides = {}
    for name, records in runs.items():
        if name in ours:
            work, compared = work_of(records[0]), {peer: runs[peer] for peer in peers if peer in runs}
        else:
            work, compared = forward_work(measured.prompt_tokens, measured.alike, readers[name], lengths), {}
        of_sides[name] = rounds.figures(records, work.times(LEARNER), measured.machine, compared)
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
        "sides": of_sides,
    }


def table(measured: Record) -> str:
    plan = measured["plan"]
    return "\n".join(
        [
            f"one update from {plan['problems']} problems × {plan['rollouts']} rollouts, prompts of "
            f"{measured['prompt_tokens'][0]} tokens that begin with the same {measured['alike']}, "
            f"completions of {plan['new_tokens']}, float32; rounds: "
            f"{plan['rounds']}, counted updates in each: {plan['steps']}",
            *rounds.heading(measured["versions"], measured["machine"], measured["load_before"]),
            "",
            *rounds.sides_table(measured["sides"], measured["peers"], measured["new_tokens"]),
            *rounds.noise_lines(measured["noise"]),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = rounds.parser(
        "benchmarks.learner",
        "Time the learner of ours against a plain one.",
        "one round of 2 problems × 4 rollouts",
    )
    parser.add_argument("--problems", type=int, default=16, help=f"1 to {QUESTIONS}")
    parser.add_argument("--rollouts", type=int, default=16, help="for each problem, at least 2")
    parser.add_argument("--examples", type=int, default=0, help=f"answered in each prompt, 0 to {EXAMPLES}")
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--compiled", action="store_true", help="the plain learner through torch.compile as well")
    rounds.add_only(parser)
    given = parser.parse_args(arguments)
    if given.quick:
        given.problems, given.rollouts, given.rounds = 2, 4, 1
    model = rounds.checked(
        parser, given, problems=(1, QUESTIONS), rollouts=(2, None), examples=(0, EXAMPLES), new_tokens=(1, None)
    )
    if given.compiled and not compiler():
        print(f"compiled rows are left out: torch.compile needs one of {', '.join(COMPILERS)}, or CXX", file=sys.stderr)
        given.compiled = False
    measured = measure(Plan(**{field.name: getattr(given, field.name) for field in fields(Plan)}), model)
    print(json.dumps(measured) if given.json else table(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
