"""What the benchmarks of ours against peers share: the plan and its options, our sides, and what is told of every side.

`benchmarks.step`, `benchmarks.rollouts` and `benchmarks.learner` add their peers and a table.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TypeVar

from benchmarks import rounds
from benchmarks.rounds import Measured, Record, Side, flags
from benchmarks.workload import EXAMPLES, QUESTIONS, forms


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run."""

    problems: int
    rollouts: int
    """For each problem."""
    new_tokens: int
    rounds: int
    steps: int
    """Counted repeats in each process."""
    threads: int | None
    only: str | None


AnyPlan = TypeVar("AnyPlan", bound=Plan)


def parser(prog: str, description: str, quick: str) -> argparse.ArgumentParser:
    """A parser with the options of `Plan`, but for the number of new tokens."""
    built = rounds.parser(prog, description, quick)
    built.add_argument("--problems", type=int, default=16, help=f"1 to {QUESTIONS}")
    built.add_argument("--rollouts", type=int, default=16, help="for each problem, at least 2")
    built.add_argument("--only", metavar="REGEX", help="of the sides, those whose names it is found in")
    return built


def add_examples(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument("--examples", type=int, default=default, help=f"answered in each prompt, 0 to {EXAMPLES}")


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was typed; with `--quick` one round of little."""
    given = parser.parse_args(arguments)
    if given.quick:
        given.problems, given.rollouts, given.rounds = 2, 4, 1
    return given


def checked(parser: argparse.ArgumentParser, given: argparse.Namespace, kind: type[AnyPlan]) -> tuple[AnyPlan, str]:
    """The plan and the model's folder, if all options are within their bounds; else `parser` ends it."""
    names = {field.name for field in fields(kind)}
    examples: dict[str, tuple[int, int | None]] = {"examples": (0, EXAMPLES)} if "examples" in names else {}
    model = rounds.checked(parser, given, problems=(1, QUESTIONS), rollouts=(2, None), new_tokens=(1, None), **examples)
    return kind(**{name: getattr(given, name) for name in names}), model


def ours(plan: Plan, model: str, part: str, shape: Iterable[str]) -> dict[str, Side]:
    """Our sides by name, one for each form of a group; `part` and `shape` are options of `benchmarks.ours`."""
    return {
        form.name: Side(
            form.name,
            [
                "benchmarks.ours",
                model,
                *flags(part=part, population=form.population, minds=form.minds, samples=form.samples),
                *shape,
            ],
            environment=rounds.KEPT_MEMORY,
        )
        for form in forms(plan.rollouts)
    }


def told(plan: Plan, measured: Measured, packages: Iterable[str], figures: Mapping[str, Record]) -> Record:
    """What every benchmark of sides tells, as JSON has it; `figures` are those of each side."""
    first, *_, silent = forms(plan.rollouts)
    return {
        "plan": asdict(plan),
        **rounds.told(measured, packages),
        "prompt_tokens": measured.prompt_tokens,
        "alike": measured.alike,
        "noise": rounds.noise(measured.runs, first.name, silent.name),
        "sides": figures,
    }


def lines(measured: Record, what: str, table: Sequence[str]) -> list[str]:
    """What was run on what, the table, and what noise costs; for a reader."""
    plan = measured["plan"]
    return [
        f"{what}, prompts of {measured['prompt_tokens'][0]} tokens that begin with the same {measured['alike']}, "
        f"float32; rounds: {plan['rounds']}, counted repeats in each: {plan['steps']}",
        *rounds.heading(measured),
        "",
        *table,
        *rounds.noise_lines(measured["noise"]),
    ]
