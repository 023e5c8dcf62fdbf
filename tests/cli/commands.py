"""What tests of commands share: a command typed, what it printed and kept, and engines that fail, watch or count."""

import errno
import gc
import io
import json
import os
import pty
import resource
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from fakes import ScriptedBackend
from typer.testing import CliRunner, Result

from ttrl_pop.cli.app import app
from ttrl_pop.errors import UsageError
from ttrl_pop.sample.backend import Request, Weights
from ttrl_pop.sample.hf.backend import HfBackend
from ttrl_pop.store import checkpoint, files
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.types import Rollout
from ttrl_pop.vote.graders.exact import ExactGrader

STEPS = 3
CONFIG = """
model = {model}
steps = 3
problems_per_step = 4
[problems]
form = "raw"
[population]
minds = 3
[population.options]
sigma = 0.3
final_mu = true
[sampling]
max_new_tokens = 4
temperature = 2.0
[vote]
grader = "exact"
[learn]
lr = 1e-2
mask_truncated = false
[learn.lora]
rank = 2
"""
GOLD = {"p0": "56", "p1": "36", "p2": "16", "p3": "132", "p4": "45", "p5": "200"}


def ttrl(*arguments: object, stdin: bytes | None = None, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin, catch_exceptions=False)
    assert result.exit_code == code, result.stderr
    return result


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def final(out: Path) -> dict[str, Any]:
    """What a run ends with: weights and answers to the byte, metrics without times."""
    run = RunDirectory(out)
    step = checkpoint.latest(run)
    assert step is not None
    folder = run.checkpoint(step)
    metrics = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in files.read_lines(run.metrics)]
    return {
        "step": step,
        "adapter": (folder / "adapter" / "adapter_model.safetensors").read_bytes(),
        "population": (folder / "population.safetensors").read_bytes(),
        "optimizer": (folder / "optimizer.safetensors").read_bytes(),
        "answers": run.answers.read_bytes(),
        "metrics": metrics,
    }


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def run(place: Path, out: Path, *more: object, code: int = 0) -> Result:
    return ttrl("run", place / "p.jsonl", "--config", place / "c.toml", "--out", out, *more, code=code)


def child(
    arguments: list[str], stdout: str, stderr: str, stdin: str, largest: int | None, environment: dict[str, str]
) -> None:
    """`ttrl-pop` in a process of its own, on files, pipes or a terminal; no file gets longer than `largest` bytes."""
    os.environ.update(environment)
    import torch

    from ttrl_pop.cli.app import main

    torch.set_num_threads(1)
    for number, path, flags in ((0, stdin, os.O_RDONLY), (2, stderr, os.O_WRONLY), (1, stdout, os.O_WRONLY)):
        os.dup2(os.open(path, flags | os.O_CREAT), number)
    # multiprocessing has put another in its place.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    sys.argv = ["ttrl-pop", *arguments]
    main()


def ended(process: Any) -> int | None:
    process.join(120)
    return process.exitcode


def on_terminal(start: Callable[..., Any], *arguments: object) -> tuple[int | None, str]:
    """Exit code and screen of a command whose streams are all one terminal of 100 columns."""
    master, slave = pty.openpty()
    name = os.ttyname(slave)
    process = start(*arguments, stdout=name, stderr=name, stdin=name)
    shown = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ready, _, _ = select.select([master], [], [], 0.2)
        if ready:
            shown += os.read(master, 65536)
        elif not process.is_alive():
            break
    os.close(slave)
    os.close(master)
    return ended(process), shown.decode()


class Refusing(HfBackend):
    def rollouts(self, requests: Sequence[Request], weights: Weights = "policy") -> Iterator[tuple[int, Rollout]]:
        raise UsageError("not with me")


class Broken(HfBackend):
    """An engine whose process is gone."""

    def rollouts(self, requests: Sequence[Request], weights: Weights = "policy") -> Iterator[tuple[int, Rollout]]:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Watched(HfBackend):
    """Two problems of three minds at a time; notes when each rollout is done."""

    events: ClassVar[list[str]] = []

    def rollouts(self, requests: Sequence[Request], weights: Weights = "policy") -> Iterator[tuple[int, Rollout]]:
        for start in range(0, len(requests), 6):
            for index, rollout in super().rollouts(requests[start : start + 6], weights):
                self.events.append("rollout")
                yield start + index, rollout


class Doubting(ExactGrader):
    """A grader with something to tell of every vote."""

    def doubt(self, answers: Iterable[str | None]) -> str | None:
        return "it may be another"


class Reader(io.StringIO):
    """Standard output, whose reader notes when something came."""

    def flush(self) -> None:
        Watched.events.append(f"{len(self.getvalue().splitlines())} lines")


class Counted(ScriptedBackend):
    """Says, after every update, how many rollouts are alive, and how many objects of any kind."""

    def refresh(self) -> None:
        gc.collect()
        things = gc.get_objects()
        # Not isinstance, which wakes lazy modules.
        print(f"alive {sum(type(thing) is Rollout for thing in things)} {len(things)}", file=sys.stderr)


class Timed(ScriptedBackend):
    """Says how much of the processor's time went by before it was asked for anything."""

    def rollouts(self, requests: Sequence[Request], weights: Weights = "policy") -> Iterator[tuple[int, Rollout]]:
        print(f"cpu {time.process_time()}", file=sys.stderr)
        return super().rollouts(requests, weights)


class Counting:
    """A function that counts its calls; as a method, too."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls = 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        return self.function(*arguments, **named)

    def __get__(self, owner: Any, kind: type) -> Callable[..., Any]:
        return partial(self, owner)


def constant(text: str, finish_reason: str) -> str:
    """An extraction that finds the same answer everywhere."""
    return "1"
