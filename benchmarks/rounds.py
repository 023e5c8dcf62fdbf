"""Sides in rounds, each a process of its own, and the table of what they took.

A round measures the machine and then runs every side once; rounds begin with another side each, so that a machine that
slows down slows all. A side is a module that prints one JSON line, of which every benchmark reads

    seconds         of each repeat; the first is warm-up and not counted
    threads         of torch, or of the engine
    peak_bytes      largest resident set of the process

and of some side, as those of ours are,

    prompt_tokens   of each prompt
    alike           tokens with which all prompts begin
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from statistics import median
from typing import Any

from benchmarks.workload import Work
from ttrl_pop.errors import UsageError
from ttrl_pop.kernels import malloc, threads
from ttrl_pop.model.source import locate

MIB = 1 << 20
KEPT_MEMORY = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_TRIM_THRESHOLD_": str(2**62),
    "MALLOC_MMAP_THRESHOLD_": str(malloc.FROM_SYSTEM),
    "LRU_CACHE_CAPACITY": malloc.PREPARED_PRODUCTS,
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": malloc.PREPARED_PRODUCTS,
    threads.SETTING: threads.SPINS,
}
"""What `ttrl-pop` sets for itself (`ttrl_pop.kernels.malloc`, `threads`), and its users need not know of."""
TELLING = ("benchmarks.ours", "benchmarks.peer_vllm")
"""Whose records tell of the prompts."""
BUSY = 0.5
"""Load average above which a measurement is disturbed."""

Record = dict[str, Any]
"""What a process of one side printed, or what was made of it."""
Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Side:
    name: str
    command: Sequence[str]
    """Module and its arguments."""
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """All rounds."""

    load_before: float
    machine: Record
    """The record of `benchmarks.machine`; rates are medians over rounds."""
    runs: dict[str, list[Record]]
    """One record for each round, by side."""

    @property
    def prompt_tokens(self) -> list[int]:
        lengths: list[int] = self._told["prompt_tokens"]
        return lengths

    @property
    def alike(self) -> int:
        return int(self._told["alike"])

    @property
    def _told(self) -> Record:
        return next(records[0] for records in self.runs.values() if "alike" in records[0])


def measure(
    sides: Sequence[Side],
    model: str,
    rounds: int,
    threads: int | None,
    only: str | None = None,
    same_threads: bool = True,
) -> Measured:
    """
    Args:
        only: a regular expression; sides whose names it is not found in are left out.
        same_threads: whether all sides must have one number of threads.

    Raises:
        SystemExit: a process failed, not all had one number of threads or the same prompts, or no side is left that
            tells of its prompts.
    """
    sides = [side for side in sides if only is None or re.search(only, side.name)]
    if not sides:
        raise SystemExit(f"--only must be found in the name of some side, got {only!r}")
    if not any(side.command[0] in TELLING for side in sides):
        names = ", ".join(side.name for side in sides)
        raise SystemExit(f"--only must leave a side that tells of its prompts, got {names} alone; keep one of ours")
    load = os.getloadavg()[0]
    if load > BUSY:
        print(f"the machine is not idle (load average {load:.1f}); these figures will say little", file=sys.stderr)
    runs: dict[str, list[Record]] = {side.name: [] for side in sides}
    machines: list[Record] = []
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        machines.append(run(Side("machine", ["benchmarks.machine", model]), threads))
        turn = number % len(sides)
        for side in [*sides[turn:], *sides[:turn]]:
            record = run(side, threads)
            runs[side.name].append(record)
            print(f"  {side.name}: {seconds(record):.2f} s", file=sys.stderr)
    counts = {record["threads"] for records in [*runs.values(), machines] for record in records}
    if same_threads and len(counts) > 1:
        raise SystemExit(f"all processes must have one number of threads, got {sorted(counts)}; pass --threads")
    prompts = {tuple(record["prompt_tokens"]) for records in runs.values() for record in records if "alike" in record}
    if len(prompts) > 1:
        raise SystemExit(f"all sides must read the same prompts, got {sorted(map(sum, prompts))} tokens")
    rates = ("layer_flops_per_second", "head_flops_per_second")
    machine = machines[0] | {key: median(record[key] for record in machines) for key in rates}
    return Measured(load, machine, runs)


def run(side: Side, threads: int | None) -> Record:
    """The JSON line that `side` prints last; its errors are shown only where it fails."""
    environment = os.environ | side.environment | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    done = subprocess.run([side.python, "-m", *side.command], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{done.stderr}\n{' '.join(side.command)}: exit status {done.returncode}")
    record: Record = json.loads(done.stdout.splitlines()[-1])
    return record


def seconds(record: Record, key: str = "seconds") -> float:
    """Median over the counted repeats."""
    return float(median(record[key][1:]))


def ratios(records: Sequence[Record], others: Sequence[Record]) -> list[float]:
    """Seconds of `records` over those of `others` in the same round."""
    return [seconds(one) / seconds(other) for one, other in zip(records, others, strict=True)]


def figures(records: Sequence[Record], work: Work, machine: Record, peers: Mapping[str, Sequence[Record]]) -> Record:
    """What is told of one side, from one record for each round."""
    rounds = [seconds(record) for record in records]
    return {
        "seconds": median(rounds),
        "rounds": rounds,
        "peak_bytes": max(record["peak_bytes"] for record in records),
        "share": work.seconds(machine) / median(rounds),
        "ratios": {name: ratios(others, records) for name, others in peers.items()},
    }


def sides_table(sides: Mapping[str, Record], peers: Sequence[str], tokens: int) -> list[str]:
    """Seconds, `tokens` over seconds, ratios with their range over rounds, MiB, and shares; for a reader."""
    rows = [
        (
            "",
            "s",
            "tokens/s",
            *(cell for peer in peers for cell in (f"{peer}/this", "range")),
            "peak MiB",
            "of attainable",
        )
    ]
    for name, side in sides.items():
        compared: list[str] = []
        for peer in peers:
            compared += spread(side["ratios"][peer]) if peer in side["ratios"] else ("", "")
        rows.append(
            (
                name,
                f"{side['seconds']:.2f}",
                f"{tokens / side['seconds']:.0f}",
                *compared,
                f"{side['peak_bytes'] / MIB:.0f}",
                f"{side['share']:.0%}",
            )
        )
    return aligned(rows)


def spread(values: Sequence[float]) -> tuple[str, str]:
    """Median, and smallest to largest."""
    return f"{median(values):.2f}", f"{min(values):.2f}–{max(values):.2f}"


def aligned(rows: Sequence[Row]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        right = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *right]))
    return lines


def told(measured: Measured, packages: Iterable[str]) -> Record:
    """What ran on what, as JSON has it."""
    return {
        "load_before": measured.load_before,
        "versions": {name: version(name) for name in packages},
        "machine": measured.machine,
    }


def heading(measured: Record) -> list[str]:
    """What ran on what, for a reader; `measured` holds what `told` gave."""
    machine = measured["machine"]
    return [
        "  ".join(f"{name} {number}" for name, number in measured["versions"].items()),
        f"attainable: {machine['layer_flops_per_second'] / 1e9:.0f} GFLOP/s in the layers, "
        f"{machine['head_flops_per_second'] / 1e9:.0f} in the LM head; {machine['threads']} threads; load average "
        f"before: {measured['load_before']:.1f}",
    ]


def noise(runs: Mapping[str, Sequence[Record]], noisy: str, silent: str) -> list[float]:
    """Cost of the noise; nothing where a side was left out."""
    return ratios(runs[noisy], runs[silent]) if noisy in runs and silent in runs else []


def noise_lines(values: Sequence[float]) -> list[str]:
    if not values:
        return []
    middle, range_ = spread(values)
    return ["", f"noise over no noise at equal work (one sample of each mind): {middle} ({range_})"]


def flags(**values: object) -> list[str]:
    return [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def parser(prog: str, description: str, quick: str) -> argparse.ArgumentParser:
    """With the options that every benchmark of sides has."""
    built = argparse.ArgumentParser(prog=f"python -m {prog}", description=description)
    built.add_argument("--model", default="smollm2", help="as for ttrl-pop; a folder or smollm2")
    built.add_argument("--rounds", type=int, default=3)
    built.add_argument("--steps", type=int, default=1, help="counted repeats in each process, after one of warm-up")
    built.add_argument("--threads", type=int, help="of each process; default: as torch chooses")
    built.add_argument("--quick", action="store_true", help=quick)
    built.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return built


def checked(parser: argparse.ArgumentParser, given: argparse.Namespace, **bounds: tuple[int, int | None]) -> str:
    """The model's folder, if it is there and every named option lies within its bounds; else `parser` ends it."""
    for name, (least, most) in {"rounds": (1, None), "steps": (1, None), **bounds}.items():
        value = getattr(given, name)
        if value < least or (most is not None and value > most):
            rule = f"at least {least}" if most is None else f"{least} to {most}"
            parser.error(f"--{name.replace('_', '-')} is {rule}, got {value}")
    try:
        return locate(given.model)
    except UsageError as error:
        parser.error(str(error))
