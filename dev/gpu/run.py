"""All phases on one device, each in a process and under a time limit of its own, the most important first; one JSON row
for each figure, written as it is said.

    python -m dev.gpu.run --device cuda --bundle .gpu --out rows.jsonl --logs logs
    python -m dev.gpu.run --device cpu --quick --out rows.jsonl --logs logs

A phase that fails or runs out of time costs no other; one that no longer fits before the deadline, or lacks what it
cannot do without, is said and left out. The exit status says whether all went well.
"""

import argparse
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dev.gpu.bundle import COMMIT, MODEL_PACKAGE, commit_here
from dev.gpu.phases import Phase, phases
from dev.gpu.process import Log, run
from dev.gpu.rows import Row
from ttrl_pop.kernels import threads

ROOT = Path(__file__).parents[2]
DEADLINE = 480
"""Seconds of all phases together on a GPU."""
LEAST = 10
"""Seconds for which a phase is still begun."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parsed(arguments)
    given.scratch = given.scratch.resolve()
    for folder in (given.logs, given.scratch, given.out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for left in given.scratch.glob("demo-*"):
        shutil.rmtree(left)
    _environment(given)
    log = Log(given.logs / "all.log")
    told: list[Row] = []

    def tell(row: Row) -> None:
        told.append(row)
        write(given.out, row)

    began = time.monotonic()
    gguf = given.bundle / "demo.gguf"
    lacking = {} if gguf.exists() or importlib.util.find_spec(MODEL_PACKAGE) else {"model": _no_model(given.bundle)}
    first = Phase("machine", 60, (sys.executable, "-m", "dev.gpu.machine", f"--device={given.device}"))
    model = str(gguf.resolve()) if gguf.exists() else "smollm2"
    for phase in [first, *phases(given.device, given.quick, given.scratch, model)]:
        if phase is not first and given.only and not any(word in phase.name for word in given.only):
            continue
        left = given.deadline - (time.monotonic() - began)
        reason = next((lacking[name] for name in phase.needs if name in lacking), None)
        if reason is None and left < LEAST:
            reason = f"{max(0, left):.0f} s are left of --deadline {given.deadline:g}"
        if reason is not None:
            tell({"phase": phase.name, "skipped": reason})
            continue
        extra = {"commit": commit(given.bundle)} if phase is first else {}
        log.begin(phase.name)
        limit = min(phase.seconds, given.limit, left)
        ended = run(phase.command, ROOT, limit, log, lambda row, p=phase.name, e=extra: tell({"phase": p, **e, **row}))
        log.end()
        tell({"phase": phase.name, **ended})
        versions = next((row["versions"] for row in told if "versions" in row), {})
        if phase is first and versions and "trl" not in versions:
            lacking["trl"] = "TRL is not installed"
    return 0 if all(_went_well(row) for row in told) else 1


def _went_well(row: Row) -> bool:
    """A peer that is not there says nothing about us; all else that is left out does."""
    skipped = "skipped" in row and not str(row.get("skipped")).startswith("TRL") and "passed" not in row
    return row.get("ended", 0) == 0 and "error" not in row and not skipped


def commit(bundle: Path) -> str | None:
    """The commit that is measured: what the environment or this checkout says, else the bundle."""
    told = os.environ.get("TTRL_POP_COMMIT") or commit_here(ROOT)
    file = bundle / COMMIT
    return told or (file.read_text().strip() if file.exists() else None)


def _no_model(bundle: Path) -> str:
    return f"neither {bundle / 'demo.gguf'} nor {MODEL_PACKAGE} is there; send all pieces and unpack them"


def _environment(given: argparse.Namespace) -> None:
    """What the processes of all phases are told."""
    site = given.bundle.resolve() / "site"
    path = [str(ROOT), str(ROOT / "tests"), *([str(site)] if site.exists() else [])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    os.environ["PYTHONUNBUFFERED"] = "1"
    os.environ["TTRL_POP_DEVICE"] = given.device
    threads.configure()
    os.environ.setdefault("TTRL_POP_CACHE", str(given.scratch / "cache"))


def write(file: Path, row: Row) -> None:
    """Append a row to the file, and show it."""
    line = json.dumps(row) + "\n"
    with file.open("a") as out:
        out.write(line)
    print(line, end="", flush=True)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dev.gpu.run", description="Prove and measure on a device.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--bundle", type=Path, default=Path(".gpu"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--logs", type=Path, required=True, help="folder of all.log")
    parser.add_argument("--scratch", type=Path, default=Path("runs/gpu"), help="for models and runs")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--limit", type=int, default=600, help="seconds that a phase may take, at most")
    parser.add_argument("--deadline", type=float, help=f"seconds of all phases; on a GPU {DEADLINE}, else none")
    parser.add_argument("--only", nargs="*", default=(), help="phases whose names hold one of these words")
    given = parser.parse_args(arguments)
    if given.deadline is None:
        given.deadline = float("inf") if given.device == "cpu" else DEADLINE
    return given


if __name__ == "__main__":
    sys.exit(main())
