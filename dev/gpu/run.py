"""All phases on one device, each in a process and under a time limit of its own, the most important first; one JSON row
for each figure.

    python -m dev.gpu.run --device cuda --bundle .gpu --out rows.jsonl --logs logs
    python -m dev.gpu.run --device cpu --quick --out rows.jsonl --logs logs

A phase that fails or runs out of time costs no other. The exit status says whether all went well.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from dev.gpu.rows import Row, said
from ttrl_pop.kernels import threads

ROOT = Path(__file__).parents[2]
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "trl", "triton", "numpy")


@dataclass(frozen=True, slots=True)
class Phase:
    """A command, and how long it may take."""

    name: str
    seconds: int
    command: tuple[str, ...]


def phases(given: argparse.Namespace) -> list[Phase]:
    """In the order in which they run."""
    device, quick = given.device, given.quick
    on_gpu = device != "cpu"
    python, shared = sys.executable, (f"--device={device}", *(["--quick"] if quick else []))
    gguf = given.bundle / "demo.gguf"
    model = str(gguf) if gguf.exists() else "smollm2"
    # Plug-ins of pytest that a machine may have warn of each other, and here a warning is an error.
    left_out = [word for name in ("cacheprovider", "benchmark", "cov", "timeout") for word in ("-p", f"no:{name}")]
    files = ("tests/gpu", *sorted(map(str, Path("tests/kernels").glob("test_*_kernels.py"))))
    tests = (python, "-m", "pytest", "-q", *left_out, *files, *(["-n", "14"] if on_gpu else []))
    found = [Phase("tests", 150, (*tests, *(["-k", "llama and not run"] if quick else [])))]
    types = ["float32"] if not on_gpu else ["bfloat16", "float32"]
    for dtype in types:
        out = given.scratch / f"demo-{dtype}"
        graphs = ["--graphs"] if on_gpu and dtype == "bfloat16" else []
        command = (python, "-m", "dev.gpu.demo", str(out), f"--model={model}", f"--dtype={dtype}", *graphs, *shared)
        found.append(Phase(f"demo {dtype}", 90, command))
    folders = (
        {"1.5B": given.scratch / "large"}
        if quick
        else {"smollm2": given.scratch / "small", "1.5B": given.scratch / "large"}
    )
    dtype = f"--dtype={'bfloat16' if on_gpu else 'float32'}"
    for name, folder in folders.items():
        made = (python, "-m", "dev.gpu.models", name, str(folder), f"--model={model}", *shared)
        found.append(Phase(f"make {name}", 60, made))
    for name, folder in folders.items():
        peer = (python, "-m", "dev.gpu.peer", str(folder), f"--name={name}", dtype, *shared)
        found.append(
            Phase(f"ours {name}", 150, (python, "-m", "dev.gpu.speed", str(folder), f"--name={name}", dtype, *shared))
        )
        found.append(Phase(f"TRL {name}", 150, peer))
    found.append(Phase("attention", 60, (python, "-m", "dev.gpu.attention", *shared)))
    for name, folder in folders.items():
        command = (
            python,
            "-m",
            "dev.gpu.profile",
            str(folder),
            f"--name={name}",
            f"--logs={given.logs}",
            dtype,
            *shared,
        )
        found.append(Phase(f"profile {name}", 60, command))
    return [phase for phase in found if not given.only or any(word in phase.name for word in given.only)]


def machine(device: str) -> Row:
    """What all this runs on."""
    import torch

    kind = torch.cuda.get_device_name() if device != "cpu" else platform.processor() or platform.machine()
    installed: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            installed[name] = version(name)
        except ImportError:
            continue
    return {"device": kind, "python": platform.python_version(), "cuda": torch.version.cuda, "versions": installed}


def run(phase: Phase, logs: Path, limit: int) -> tuple[list[Row], bool]:
    """The rows of one phase, and whether it ended well. Its output goes to `logs`."""
    began = time.monotonic()
    log = logs / f"{phase.name.replace(' ', '-')}.log"
    with log.open("w") as file:
        try:
            process = subprocess.run(
                phase.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=limit, check=False
            )
            code: int | str = process.returncode
        except subprocess.TimeoutExpired:
            code = "out of time"
    output = log.read_text(errors="replace")
    last = [line for line in output.splitlines() if line.strip()][-1:] or [""]
    done = {"phase": phase.name, "ended": code, "seconds": round(time.monotonic() - began, 1), "last": last[0][-300:]}
    return [{"phase": phase.name, **row} for row in said(output)] + [done], code == 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dev.gpu.run", description="Prove and measure on a device.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--bundle", type=Path, default=Path(".gpu"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--logs", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, default=Path("runs/gpu"), help="for models and runs")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--limit", type=int, default=600, help="seconds that a phase may take, at most")
    parser.add_argument("--only", nargs="*", default=(), help="phases whose names hold one of these words")
    given = parser.parse_args(arguments)
    given.scratch = given.scratch.resolve()
    for folder in (given.logs, given.scratch):
        folder.mkdir(parents=True, exist_ok=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    site = given.bundle.resolve() / "site"
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), str(ROOT / "tests"), *([str(site)] if site.exists() else [])]
    )
    os.environ["TTRL_POP_DEVICE"] = given.device
    threads.configure()
    os.environ.setdefault("TTRL_POP_CACHE", str(given.scratch / "cache"))
    well = True
    write(given.out, [machine(given.device)])
    for phase in phases(given):
        rows, ended_well = run(phase, given.logs, min(phase.seconds, given.limit))
        write(given.out, rows)
        well &= ended_well and not any("error" in row for row in rows)
    return 0 if well else 1


def write(file: Path, rows: Sequence[Row]) -> None:
    """Append rows to the file, and show them."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    with file.open("a") as out:
        out.write(lines)
    print(lines, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
