"""The phases in the order in which they run, the most important first: what is right, how fast, where the time goes."""

import sys
from dataclasses import dataclass
from pathlib import Path

from dev.gpu.models import LARGE, SMALL

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Phase:
    """A command, how long it may take, and what it cannot do without."""

    name: str
    seconds: int
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    """`model`: the demo model; `trl`."""


def phases(device: str, quick: bool, scratch: Path, model: str) -> list[Phase]:
    """
    Args:
        scratch: folder for models and runs.
        model: the demo model's file, or its name.
    """
    on_gpu = device != "cpu"
    shared = (f"--device={device}", *(["--quick"] if quick else []))
    dtype = f"--dtype={'bfloat16' if on_gpu else 'float32'}"

    def module(name: str, *arguments: object) -> tuple[str, ...]:
        return (sys.executable, "-m", f"dev.gpu.{name}", *map(str, arguments), *shared)

    def demo(dtype: str, *more: str) -> Phase:
        command = module("demo", scratch / f"demo-{dtype}", f"--model={model}", f"--dtype={dtype}", *more)
        return Phase(f"demo {dtype}", 90, command, ("model",))

    folders = {SMALL: scratch / "small", LARGE: scratch / "large"}
    if quick:
        del folders[SMALL]
    named = {name: (folder, f"--name={name}", dtype) for name, folder in folders.items()}
    return [
        *_tests(on_gpu, quick),
        *(Phase(f"make {n}", 60, module("models", n, at, f"--model={model}"), ("model",)) for n, at in folders.items()),
        *(Phase(f"ours {name}", 120, module("speed", *given), ("model",)) for name, given in named.items()),
        *(Phase(f"TRL {name}", 90, module("peer", *given), ("model", "trl")) for name, given in named.items()),
        *(Phase(f"profile {name}", 60, module("profile", *given), ("model",)) for name, given in named.items()),
        *([demo("bfloat16", "--graphs")] if on_gpu else []),
        Phase("attention", 60, module("attention")),
        demo("float32"),
    ]


def _tests(on_gpu: bool, quick: bool) -> list[Phase]:
    """What is killed of one loses no other."""
    # Plug-ins of pytest that a machine may have warn of each other, and here a warning is an error.
    left_out = [word for name in ("cacheprovider", "benchmark", "cov", "timeout") for word in ("-p", f"no:{name}")]
    kernels = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "tests" / "kernels").glob("test_*_kernels.py"))
    parts = {
        # They are of Triton, and a CPU has none.
        **({"kernels": (60, kernels, "")} if on_gpu else {}),
        "forward": (60, ["tests/gpu/test_forward.py"], "llama and not run"),
        "training": (90, ["tests/gpu/test_training.py"], "adam or minds_of"),
    }
    return [
        Phase(
            f"tests {name}",
            seconds,
            (
                *(sys.executable, "-m", "pytest", "-q", *left_out, *files),
                *(["-n", "14"] if on_gpu else []),
                *(["-k", some] if quick and some else []),
            ),
        )
        for name, (seconds, files, some) in parts.items()
    ]
