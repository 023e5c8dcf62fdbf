"""How time and memory of a whole step of ours grow: with rows, with problems, with the prompt, with completions.

Each axis grows one thing and leaves the others: 16 problems, 4 minds × 1 sample, prompts of 23 tokens, completions of
exactly 4. With one sample of each mind no prompt is shared, so that work grows as rows do. A point is a step of
`benchmarks.ours` in a process of its own; how points take turns stands in `benchmarks.rounds`.

"Of linear" is the growth of time over that of the work, both from the first point of the axis: 1 is linear, less is
better. Work is rows where rows or problems grow, and elsewhere the tokens that must be computed, forward and backward,
as `benchmarks.workload` counts them.

Besides, the largest resident set of one process after its 5th and after its last of 50 small steps.

    python -m benchmarks.scaling            the full measurement
    python -m benchmarks.scaling --quick    a minute, to see that it runs; its figures say little
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from benchmarks import rounds
from benchmarks.rounds import MIB, Record, Side, flags
from benchmarks.workload import STEP, work_of

PACKAGES = ("transformers", "peft", "torch")
SETTLED = 5
"""Steps after which memory should not grow."""


@dataclass(frozen=True, slots=True)
class Point:
    """One step; the fields are options of `benchmarks.ours`."""

    problems: int = 16
    minds: int = 4
    examples: int = 0
    new_tokens: int = 4

    @property
    def rows(self) -> int:
        return self.problems * self.minds

    @property
    def name(self) -> str:
        return f"{self.problems} problems × {self.minds} minds, {self.examples} examples, {self.new_tokens} new tokens"


AXES = {
    "rows": [Point(minds=minds) for minds in (4, 16, 64)],
    "problems": [Point(problems=problems) for problems in (16, 64, 256)],
    "prompt": [Point(examples=examples) for examples in (0, 1, 3, 7)],
    "completion": [Point(new_tokens=tokens) for tokens in (4, 16, 64)],
}
QUICK = {
    "rows": [Point(2, minds) for minds in (2, 4)],
    "problems": [Point(problems, 2) for problems in (2, 4)],
    "prompt": [Point(2, 2, examples) for examples in (0, 1)],
    "completion": [Point(2, 2, 0, tokens) for tokens in (4, 8)],
}
SMALL = Point(problems=2)
"""The step that is made again and again."""


@dataclass(frozen=True, slots=True)
class Plan:
    axes: dict[str, list[Point]]
    rounds: int
    steps: int
    """Counted steps in each process."""
    small_steps: int
    threads: int | None


def measure(plan: Plan, model: str) -> Record:
    """Run all rounds; all that was measured, as JSON has it."""
    points = {point.name: point for axis in plan.axes.values() for point in axis}
    sides = [
        Side(name, command(point, model, 1 + plan.steps), environment=rounds.KEPT_MEMORY)
        for name, point in points.items()
    ]
    measured = rounds.measure(sides, model, plan.rounds, plan.threads)
    taken = {}
    for name, records in measured.runs.items():
        point, prompt_tokens = points[name], records[0]["prompt_tokens"]
        work = work_of(records[0]).times(STEP)
        taken[name] = rounds.figures(records, work, measured.machine, {}) | {
            "rows": point.rows,
            "prompt_tokens": prompt_tokens[0],
            "new_tokens": point.new_tokens,
            "tokens": work.layer_tokens,
        }
    print(f"{plan.small_steps} small steps", file=sys.stderr)
    small = Side("small steps", command(SMALL, model, plan.small_steps), environment=rounds.KEPT_MEMORY)
    peaks = rounds.run(small, plan.threads)["peaks"]
    return {
        "plan": asdict(plan),
        **rounds.told(measured, PACKAGES),
        "axes": {axis: growth(axis, [taken[point.name] for point in of]) for axis, of in plan.axes.items()},
        "peaks": peaks,
    }


def growth(axis: str, points: Sequence[Record]) -> list[Record]:
    """The points of one axis, each with its time over linear growth from the first."""
    unit = "rows" if axis in ("rows", "problems") else "tokens"
    first = points[0]
    return [
        point | {"of_linear": (point["seconds"] / first["seconds"]) / (point[unit] / first[unit])} for point in points
    ]


def command(point: Point, model: str, steps: int) -> list[str]:
    return ["benchmarks.ours", model, *flags(**asdict(point), lengths="even", steps=steps)]


def axis_table(axis: str, points: Sequence[Record]) -> list[str]:
    cells: list[tuple[str, ...]] = [
        (f"{axis} grow", "rows", "tokens", "s/step", "ms/row", "µs/token", "of linear", "peak MiB", "of attainable")
    ]
    cells += [
        (
            "",
            str(point["rows"]),
            f"{point['prompt_tokens']} + {point['new_tokens']}",
            f"{point['seconds']:.2f}",
            f"{1e3 * point['seconds'] / point['rows']:.1f}",
            f"{1e6 * point['seconds'] / point['tokens']:.0f}",
            f"{point['of_linear']:.2f}",
            f"{point['peak_bytes'] / MIB:.0f}",
            f"{point['share']:.0%}",
        )
        for point in points
    ]
    return rounds.aligned(cells)


def table(measured: Record) -> str:
    plan: dict[str, Any] = measured["plan"]
    peaks = measured["peaks"]
    early, late = peaks[min(SETTLED, len(peaks)) - 1], peaks[-1]
    lines = [
        f"a whole step of ours, float32; rounds: {plan['rounds']}, counted steps in each: {plan['steps']}",
        *rounds.heading(measured),
    ]
    for axis, points in measured["axes"].items():
        lines += ["", *axis_table(axis, points)]
    lines += [
        "",
        f"peak after step {min(SETTLED, len(peaks))}: {early / MIB:.0f} MiB; after step {len(peaks)}: "
        f"{late / MIB:.0f} MiB ({late / early - 1:+.1%}); steps of {SMALL.rows} rows",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = rounds.parser(
        "benchmarks.scaling", "Time steps of ours of growing size.", "one round of steps of 4 to 8 rows; 6 small steps"
    )
    parser.add_argument("--axes", nargs="+", choices=tuple(AXES), default=list(AXES), help="default: all")
    parser.add_argument("--small-steps", type=int, default=50, help="over which memory should stay flat")
    given = parser.parse_args(arguments)
    if given.quick:
        given.rounds, given.small_steps = 1, 6
    given.axes = {name: (QUICK if given.quick else AXES)[name] for name in given.axes}
    model = rounds.checked(parser, given, small_steps=(1, None))
    measured = measure(Plan(**{field.name: getattr(given, field.name) for field in fields(Plan)}), model)
    print(json.dumps(measured) if given.json else table(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
