"""Phase 0: what all runs on, asked of a process that has the path of the phases: one row.

python -m dev.gpu.machine --device cuda
"""

import argparse
import importlib.util
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

from dev.gpu.rows import say

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "trl", "triton", "numpy")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dev.gpu.machine", description="Tell device and versions.")
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args(arguments)
    kind = torch.cuda.get_device_name() if given.device != "cpu" else platform.processor() or platform.machine()
    installed: dict[str, str] = {}
    for name in LIBRARIES:
        # A package may be known and lie elsewhere: what counts is what a phase would import.
        if importlib.util.find_spec(name) is not None:
            try:
                installed[name] = version(name)
            except PackageNotFoundError:
                installed[name] = "?"
    say(device=kind, python=platform.python_version(), cuda=torch.version.cuda, versions=installed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
