"""Steps of ours by one process and by several of fewer threads, on one machine: one run, one table.

A side is a number of processes and a number of threads of each: all threads in one process, one process for each
thread, and one thread alone, as the measure of both. All write the same rollouts, of exactly `--new-tokens` tokens.
What is compared is what one machine does with one command (`--ranks`); how many machines share a run is
`benchmarks.cluster`.

With `--vllm-python` rollouts alone are measured in place of steps, and vLLM with all threads writes the same, in place
of one thread alone.

    python -m benchmarks.ranks              two cores, 24 problems × 16 minds, 46 + 8 tokens
    python -m benchmarks.ranks --quick      a minute, to see that all sides run; its figures say little
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any

from benchmarks import rounds
from benchmarks.rounds import Record, Side, flags
from benchmarks.sides import add_examples

PACKAGES = ("transformers", "peft", "torch")
VLLM = "vLLM"


@dataclass(frozen=True, slots=True)
class Plan:
    problems: int
    minds: int
    samples: int
    examples: int
    new_tokens: int
    cores: int
    rounds: int
    steps: int
    vllm_python: str | None


def measure(plan: Plan, model: str) -> Record:
    """Run all rounds; all that was measured, as JSON has it."""
    shape = flags(
        problems=plan.problems, examples=plan.examples, new_tokens=plan.new_tokens, lengths="even", steps=1 + plan.steps
    )
    ours = [
        "benchmarks.ours",
        model,
        *flags(part="rollouts" if plan.vllm_python else "step", minds=plan.minds, samples=plan.samples),
        *shape,
    ]
    one, every = rounds.KEPT_MEMORY | threads(1), rounds.KEPT_MEMORY | threads(plan.cores)
    together = ["torch.distributed.run", *flags(nproc_per_node=plan.cores), "--module", *ours]
    rollouts = flags(rollouts=plan.minds * plan.samples, side="plain")
    peer = ["benchmarks.peer_vllm", model, *rollouts, *shape]
    sides = [
        Side(name(1, plan.cores), ours, environment=every),
        Side(name(plan.cores, 1), together, environment=one),
        Side(VLLM, peer, plan.vllm_python, threads(plan.cores) | {"TORCHDYNAMO_DISABLE": "1"})
        if plan.vllm_python
        else Side(name(1, 1), ours, environment=one),
    ]
    measured = rounds.measure(sides, model, plan.rounds, None, same_threads=False)
    return {
        "plan": asdict(plan),
        **rounds.told(measured, PACKAGES),
        "prompt_tokens": measured.prompt_tokens,
        "sides": {side: figures(records, measured.runs) for side, records in measured.runs.items()},
        "layer_tokens": {side: records[0].get("layer_tokens") for side, records in measured.runs.items()},
    }


def name(processes: int, threads: int) -> str:
    return f"{processes} process{'es' * (processes > 1)} × {threads} thread{'s' * (threads > 1)}"


def threads(count: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(count)}


def figures(records: Sequence[Record], runs: dict[str, list[Record]]) -> Record:
    """Seconds of a side and of the parts of its steps, and how often they go into those of the others."""
    parts = [part for part in ("seconds", "rollouts", "learner") if part in records[0]]
    return {
        part: {
            "rounds": [rounds.seconds(record, part) for record in records],
            "ratios": {
                side: [
                    rounds.seconds(other, part) / rounds.seconds(own, part)
                    for other, own in zip(others, records, strict=True)
                ]
                for side, others in runs.items()
            },
        }
        for part in parts
    }


def table(measured: Record) -> str:
    plan: dict[str, Any] = measured["plan"]
    sides: dict[str, Record] = measured["sides"]
    what = "rollouts" if plan["vllm_python"] else "a step"
    lines = [
        f"{what} of ours, {plan['problems']} problems × {plan['minds']} minds × {plan['samples']}, prompts of "
        f"{measured['prompt_tokens'][0]} tokens and {plan['new_tokens']} new ones, float32; rounds: {plan['rounds']}, "
        f"counted repeats in each: {plan['steps']}",
        *rounds.heading(measured),
    ]
    several = name(plan["cores"], 1)
    compared = [side for side in sides if side != several]
    for part in sides[several]:
        rows: list[rounds.Row] = [(part, "s", *(cell for side in compared for cell in (f"{side}/this", "range")))]
        for side, of in sides.items():
            ratios = (cell for other in compared for cell in rounds.spread(of[part]["ratios"][other]))
            rows.append((side, f"{median(of[part]['rounds']):.2f}", *ratios))
        lines += ["", *rounds.aligned(rows)]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = rounds.parser(
        "benchmarks.ranks", "Time steps of ours by one process and by several.", "one round of steps of 8 rows"
    )
    parser.add_argument("--problems", type=int, default=24)
    parser.add_argument("--minds", type=int, default=16)
    parser.add_argument("--samples", type=int, default=1, help="per mind")
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--cores", type=int, default=2, help="processes, or threads of one")
    parser.add_argument("--vllm-python", metavar="PATH", help="rollouts alone, and vLLM with this interpreter")
    add_examples(parser, 1)
    given = parser.parse_args(arguments)
    if given.quick:
        given.problems, given.minds, given.rounds = 2, 4, 1
    model = rounds.checked(
        parser,
        given,
        problems=(1, None),
        minds=(1, None),
        samples=(1, None),
        new_tokens=(1, None),
        cores=(2, None),
    )
    measured = measure(Plan(**{field.name: getattr(given, field.name) for field in fields(Plan)}), model)
    print(json.dumps(measured) if given.json else table(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
