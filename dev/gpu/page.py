"""Print docs/GPU.md, made from the rows in dev/gpu/measured. A test compares the two.

python -m dev.gpu.page > docs/GPU.md
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from dev.gpu.rows import Row

MEASURED = Path(__file__).parent / "measured"
INTRODUCTION = """# What has been run where

Made from the rows that `make gpu` has left in `dev/gpu/measured`, by `python -m dev.gpu.page`; how to measure on
another device stands in [dev/gpu/README.md](../dev/gpu/README.md). Whatever is not in these tables has run on CPUs
alone: the engine vLLM, trained models of more than 135 million parameters, several GPUs, AMD's and Apple's. On CPUs all
tests run with every change; figures stand in dev/LOG.md and come from benchmarks/README.md.

A run is one stay on one machine; its code is the commit named. Figures of one run are comparable, those of two runs
only roughly: machines differ. Completions all have the same length. A form is minds x samples, for each of 16 problems.
"""


def rows() -> list[Row]:
    """All that was measured, in order."""
    return [json.loads(line) for file in sorted(MEASURED.glob("*.jsonl")) for line in file.read_text().splitlines()]


def table(head: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
    """A table as Markdown has it."""
    cells = [[str(cell) for cell in line] for line in lines]
    head = list(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *cells])


def machines(found: list[Row]) -> str:
    picked = ("torch", "transformers", "trl")
    lines = [
        (
            r["run"],
            r["device"],
            r["commit"] or "",
            ", ".join(f"{p} {r['versions'][p]}" for p in picked if p in r["versions"]),
        )
        for r in found
        if "device" in r
    ]
    return table(("run", "device", "commit", "with"), lines)


def tests(found: list[Row]) -> str:
    # Since there are several phases of tests, the name of each says which.
    parts = {"tests kernels": "kernels", "tests forward": "tests/gpu, forward", "tests training": "tests/gpu, training"}
    lines = [
        (r["run"], r["passed"], r["failed"], "; ".join(filter(None, [parts.get(r["phase"]), r.get("note")])))
        for r in found
        if "passed" in r
    ]
    return table(("run", "passed", "failed", "what"), lines)


def demos(found: list[Row]) -> str:
    lines = [
        (
            r["run"],
            r["dtype"],
            "yes" if r["graphs"] else "no",
            " → ".join(f"{share:.2f}" for share in r["rollout_accuracy"]),
            f"{max(r['logprob_gap']):.2g}",
            f"{r['wall']:.0f}",
            _gib(r),
        )
        for r in found
        if "rollout_accuracy" in r and r["gpu_peak_bytes"]
    ]
    head = (
        "run",
        "type",
        "graphs",
        "right rollouts by step",
        "largest gap, nats per token",
        "s, imports included",
        "GiB",
    )
    return table(head, lines)


def steps(found: list[Row]) -> str:
    # A peer that was cut off has said its steps, and no figure; one that was not there has said that alone.
    found = [r for r in found if "side" in r and "seconds" in r]
    peers = {(r["run"], r["model"], r["new_tokens"]): r["seconds"] for r in found if r["side"] == "TRL"}
    lines = []
    for r in found:
        peer = peers.get((r["run"], r["model"], r["new_tokens"]))
        is_ours = r["side"] == "ours"
        what = f"{r['form']}{', graphs' if r['graphs'] else ''}" if is_ours else "TRL"
        parts = [f"{r[part]:.2f}" if is_ours else "" for part in ("rollouts", "learner")]
        shares = [f"{r[part]:.1%}" if is_ours else "" for part in ("decode_share", "learner_share")]
        ratio = f"{peer / r['seconds']:.2f}" if peer and is_ours else ""
        seconds = f"{r['seconds']:.2f}"
        line = (
            r["run"],
            r["model"],
            r["new_tokens"],
            what,
            seconds,
            *parts,
            ratio,
            *shares,
            _gib(r),
            r.get("note", ""),
        )
        lines.append(line)
    head = (
        *("run", "model", "new tokens", "form", "s/step", "rollouts", "learner", "TRL/this"),
        *("of bandwidth, rollouts", "of FLOP/s, learner", "GiB", ""),
    )
    return table(head, lines)


def attention(found: list[Row]) -> str:
    lines = [
        (r["run"], r["attention"], r["tokens"], _ms(r["ours"]), _ms(r["flex"]), r.get("note", ""))
        for r in found
        if "flex" in r
    ]
    return table(("run", "form, new tokens", "tokens", "blocks, ms", "FlexAttention, ms", ""), lines)


def profiles(found: list[Row]) -> str:
    lines = [
        (
            *(r["run"], r["model"], r["part"], _ms(r["seconds"]), _ms(r["busy"]), r["kernels"] or ""),
            *(f"{r['attained']:.1%}" if "attained" in r else "", r.get("note", "")),
        )
        for r in found
        if "busy" in r
    ]
    head = ("run", "model", "what", "ms", "of them kernels", "kernels", "floor of bytes or FLOPs", "")
    return table(head, lines)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f}"


def _gib(row: Row) -> str:
    return f"{row['gpu_peak_bytes'] / 2**30:.1f}" if row.get("gpu_peak_bytes") else ""


def page() -> str:
    found = rows()
    parts = {
        "Machines": machines,
        "Tests (`tests/gpu`, `tests/kernels`)": tests,
        "The demo": demos,
        "A step": steps,
        "Attention of packed rows, forward and backward of a layer": attention,
        "Where the time goes": profiles,
    }
    return INTRODUCTION + "".join(f"\n## {title}\n\n{part(found)}\n" for title, part in parts.items())


if __name__ == "__main__":
    sys.stdout.write(page())
