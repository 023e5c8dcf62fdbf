"""How far a run scales: a model of clusters that nobody has at hand, fed with real lengths and measured rates.

For each number of GPUs and of problems a step it says the efficiency: what one GPU takes for the same steps, over all
GPUs' time together. What it computes and leaves out stands at the top of [cluster_model.py](cluster_model.py). A table
goes to stderr, JSON rows to stdout.

    python -m benchmarks.cluster                          1 to 512 GPUs, the lengths that come with it
    python -m benchmarks.cluster --lengths runs/mine      lengths of a run, or of what ttrl-pop sample printed
    python -m benchmarks.cluster --rates mine.json        rates of another machine, as the first row prints them

The lengths that come with it (lengths.jsonl) are those of the built-in model, 16 completions of each of 24 word
problems: `ttrl-pop sample benchmarks/lengths.jsonl --raw --population none --minds 1 --samples-per-mind 16 --set
sampling.max_new_tokens=256 --set 'sampling.stop=["\\n\\n", "Question:"]'` writes them again.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.cluster_model import Asked, Cut, Narrow, Rates, Step, drawn, elapsed, failures, step
from benchmarks.rounds import aligned
from ttrl_pop.errors import TtrlPopError
from ttrl_pop.ranks.shards import enough_for
from ttrl_pop.store.files import read_lines

HERE = Path(__file__).parent
LENGTHS = HERE / "lengths.jsonl"
ENOUGH = 0.8
"""Efficiency below which a cluster is said to be too large for its steps."""
BOUNDS: tuple[Narrow, Narrow] = ("worst", "best")
FAILURES = 400
"""Failures that a long run is made of, to see what they cost."""
HOUR = 3600.0

H200 = Rates(
    # dev/gpu/measured/h200.jsonl, a random model of 1.5 billion parameters in bf16, 16 minds on 16 problems, 128 new
    # tokens: run 2026-11-27 a, a recorded decode step; c, its weights over the measured bandwidth.
    decode=((256, 7.26e-3),),
    decode_floor=3.09e9 / 4.24e12,
    slots=256,
    # c: 33,824 tokens in 1.11 s, the optimizer's step among it; reading takes a third of learning.
    prefill=91_500.0,
    learner=30_500.0,
    # a: half of a smaller model's 0.567 s in two micro-batches, whose kernels took 0.154: launching them.
    learner_floor=0.28,
    learner_batch=18_432,
    update=0.0,
    # LoRA of rank 16 on all linear layers of that shape, float32.
    trained_bytes=74e6,
    # On a CPU of two cores, with the program's own functions, as are the three below.
    digest=0.84e9,
    # benchmarks.vote by the math grader, 769 answers a second of a mix that is hard for it.
    vote=16 / 769,
    text_bytes=17.5,
    pack=2.7e-7,
    report=1.4e-6,
    # Assumed: adapter and optimizer on a disk.
    save=0.5,
    # c: 11 s until the second step of a process; and a minute, assumed, until its machine is back.
    start=71.0,
)

LIMITS = (
    "decode steps of fewer rows than were measured: known in bounds alone, hence two figures",
    "what bandwidth and latency between GPUs are: assumed, not measured, and no message slows another",
    "NCCL, several machines, thousands of connections to the first process: nobody has run them",
    "other models, contexts so long that attention counts, memory that limits rows: their rates are not these",
    "slow GPUs, noise of machines, processes that share memory or cores",
    "prompts that begin alike, groups that teach nothing and are left out of learning: all is counted as work",
    "what a step of more problems does to what is learned",
)
"""What no figure here says anything about."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is looked at."""

    gpus: tuple[int, ...]
    problems: tuple[int, ...]
    rollouts: int
    shards: int | None
    """None: as few as the GPUs need."""
    cut: Cut
    steps: int
    """Steps drawn for each figure."""
    mean_time: float
    """Seconds between failures of one GPU; infinity: none fail."""
    every: int
    """Steps between checkpoints."""
    seed: int


def known_lengths(path: Path) -> list[Asked]:
    """The problems of a run directory, of rollouts, or of a file of lengths; those without the full number of rollouts
    are left out.

    Raises:
        SystemExit: there are none.
    """
    files = sorted(path.glob("rollouts/*.jsonl*")) if path.is_dir() else [path]
    found: dict[object, tuple[int, list[int]]] = {}
    try:
        for number, file in enumerate(files):
            for row in read_lines(file):
                lengths = row["lengths"] if "lengths" in row else [len(row["completion_ids"])]
                found.setdefault((number, row["id"]), (row["prompt_tokens"], []))[1].extend(lengths)
    except (TtrlPopError, KeyError, OSError, TypeError) as error:
        raise SystemExit(f"--lengths {path}: no rollouts, nor lengths of any ({error!r})") from None
    most = max((len(lengths) for _, lengths in found.values()), default=0)
    whole = [
        Asked(prompt, tuple(lengths)) for prompt, lengths in found.values() if len(lengths) == most and all(lengths)
    ]
    if not whole:
        raise SystemExit(f"--lengths {path}: no problem has completions; give a run directory, or what sample printed")
    return whole


def looked_at(plan: Plan, rates: Rates, known: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    """A row for every number of GPUs and of problems, then one for each number of GPUs: the problems that it needs."""
    rows = []
    for problems in plan.problems:
        batches = [drawn(known, problems, plan.rollouts, plan.seed + number) for number in range(plan.steps)]
        alone = {narrow: [step(batch, 1, 1, rates, narrow) for batch in batches] for narrow in BOUNDS}
        for gpus in plan.gpus:
            shards = plan.shards or enough_for(gpus)
            if shards > problems * plan.rollouts:
                continue
            rows.append(
                {"kind": "cluster", "gpus": gpus, "problems": problems, "rollouts": plan.rollouts, "shards": shards}
                | {"cut": plan.cut}
                | _figures(plan, rates, gpus, batches, alone)
            )
            yield rows[-1]
    for gpus in plan.gpus:
        enough = [
            [row["problems"] for row in rows if row["gpus"] == gpus and row["efficiency"][bound] >= ENOUGH]
            for bound in range(len(BOUNDS))
        ]
        yield {
            "kind": "needs",
            "gpus": gpus,
            "efficiency": ENOUGH,
            "problems": [min(each, default=None) for each in enough],
        }


def _figures(
    plan: Plan, rates: Rates, gpus: int, batches: Sequence[Sequence[Asked]], alone: dict[Narrow, list[Step]]
) -> dict[str, Any]:
    """Efficiency without and with failures, seconds by part and idle time, at worst and at best."""
    found: dict[str, list[Any]] = {"efficiency": [], "with_failures": [], "seconds": [], "parts": [], "idle": []}
    shards = plan.shards or enough_for(gpus)
    for narrow in BOUNDS:
        steps = [step(batch, gpus, shards, rates, narrow, plan.cut) for batch in batches]
        saving = rates.save / plan.every
        one = fmean(each.seconds for each in alone[narrow]) + saving
        several = fmean(each.seconds for each in steps) + saving
        efficiency = one / (gpus * several)
        found["efficiency"].append(efficiency)
        found["with_failures"].append(efficiency * _surviving(plan, rates, gpus, [each.seconds for each in steps]))
        found["seconds"].append(several)
        parts = [asdict(each) for each in steps]
        found["parts"].append({name: fmean(part[name] for part in parts) for name in parts[0] if name != "idle"})
        found["idle"].append(fmean(each.idle / each.seconds for each in steps))
    return found


def _surviving(plan: Plan, rates: Rates, gpus: int, steps: Sequence[float]) -> float:
    """Share of a long run's time that is not lost to failures."""
    if plan.mean_time == float("inf"):
        return 1.0
    work = FAILURES * plan.mean_time / gpus
    moments = failures(gpus, plan.mean_time, plan.seed)
    return work / elapsed(steps, plan.every, rates.save, rates.start, work, moments)


def table(rows: Sequence[dict[str, Any]], plan: Plan) -> str:
    """For a reader: efficiency by GPUs and problems, what stands in its way, what a cluster needs, what is not said."""
    clusters = [row for row in rows if row["kind"] == "cluster"]
    cells = {(row["gpus"], row["problems"]): row for row in clusters}
    lines = [
        f"efficiency, {plan.rollouts} rollouts of a problem, by problems a step (at worst–at best, in percent)",
        *aligned(
            [("GPUs", *(f"{problems:,}" for problems in plan.problems), f"problems for {ENOUGH:.0%}")]
            + [
                (
                    str(needs["gpus"]),
                    *(_range(cells.get((needs["gpus"], problems))) for problems in plan.problems),
                    "–".join("more" if each is None else f"{each:,}" for each in dict.fromkeys(needs["problems"])),
                )
                for needs in rows
                if needs["kind"] == "needs"
            ]
        ),
        "",
        f"where a step's time goes with {plan.problems[-1]:,} problems, in percent, at worst; failures: of time, with "
        + ("none" if plan.mean_time == float("inf") else f"one of a GPU in {plan.mean_time / HOUR:,.0f} hours"),
        *_parts([row for row in clusters if row["problems"] == plan.problems[-1]]),
        "",
        "not said here:",
        *(f"  {limit}" for limit in LIMITS),
    ]
    return "\n".join(lines)


def _parts(rows: Sequence[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["  (fewer rollouts than shards)"]
    names = [*rows[0]["parts"][0]]
    found = [("GPUs", "s", *names, "waiting", "failures")]
    for row in rows:
        parts, seconds = row["parts"][0], row["seconds"][0]
        shares = (f"{100 * parts[name] / seconds:.1f}" for name in names)
        lost = 1 - row["with_failures"][0] / row["efficiency"][0]
        found.append((str(row["gpus"]), f"{seconds:.1f}", *shares, f"{100 * row['idle'][0]:.1f}", f"{100 * lost:.1f}"))
    return aligned(found)


def _range(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return "–".join(dict.fromkeys(f"{100 * each:.0f}" for each in row["efficiency"]))


def parsed(arguments: Sequence[str] | None = None) -> tuple[Plan, Rates, list[Asked]]:
    """What was typed, read and checked.

    Raises:
        SystemExit: it cannot be.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description="Model runs on many GPUs.")
    parser.add_argument(
        "--lengths", type=Path, default=LENGTHS, help="run directory, rollouts, or lengths as JSON lines"
    )
    parser.add_argument("--rates", type=Path, help="JSON of rates; default: an H200 with 1.5 billion parameters")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--problems", type=int, nargs="+", default=[16, 64, 256, 1024, 4096], help="of a step")
    parser.add_argument("--rollouts", type=int, default=16, help="of a problem, each by a mind of its own")
    parser.add_argument("--shards", type=int, help="default: as few as the GPUs need")
    parser.add_argument("--cut", choices=("minds", "problems"), default="minds", help="how rollouts become shards")
    parser.add_argument("--steps", type=int, default=3, help="steps drawn for each figure")
    parser.add_argument("--hours", type=float, default=50_000.0, help="between failures of one GPU; 0: none fail")
    parser.add_argument("--every", type=int, default=1, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    counts = [*given.gpus, *given.problems, given.rollouts, given.steps, given.every]
    if min(counts) < 1 or given.hours < 0 or given.seed < 0:
        parser.error("all counts must be 1 or more, hours and seed 0 or more")
    if given.shards is not None and given.shards != enough_for(max(given.shards, max(given.gpus))):
        parser.error(f"--shards must be a power of two and no less than the GPUs, got {given.shards}")
    rates = H200
    if given.rates is not None:
        try:
            tree = json.loads(given.rates.read_text())
            rates = Rates(**tree | {"decode": tuple((int(rows), float(spent)) for rows, spent in tree["decode"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            parser.error(f"--rates {given.rates}: must hold the fields of the first row's rates ({error!r})")
    plan = Plan(
        gpus=tuple(sorted(given.gpus)),
        problems=tuple(sorted(given.problems)),
        rollouts=given.rollouts,
        shards=given.shards,
        cut=given.cut,
        steps=given.steps,
        mean_time=given.hours * HOUR or float("inf"),
        every=given.every,
        seed=given.seed,
    )
    return plan, rates, known_lengths(given.lengths)


def printed(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each printed as it comes."""
    found = []
    for row in rows:
        print(json.dumps(row), flush=True)
        found.append(row)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    plan, rates, known = parsed(arguments)
    printed([{"kind": "rates", "rates": asdict(rates)}])
    rows = printed(looked_at(plan, rates, known))
    printed([{"kind": "not said", "what": LIMITS}])
    print(table(rows, plan), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
