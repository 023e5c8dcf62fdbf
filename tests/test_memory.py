"""Memory: what a process may have, and which errors say that it had too little."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ttrl_pop import memory
from ttrl_pop.memory import is_exhausted, limit_bytes

CPU = torch.device("cpu")


def test_an_allocation_that_torch_refuses_is_known() -> None:
    # In a process of its own: the limit would hold for the tests that follow.
    code = """
import resource, torch
from ttrl_pop.memory import is_exhausted
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
try:
    torch.zeros(8 << 30)
except RuntimeError as error:
    assert is_exhausted(error), error
    print("known")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "known\n", done.stderr


def test_other_errors_are_not() -> None:
    assert is_exhausted(MemoryError())
    assert is_exhausted(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_exhausted(RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"))
    assert not is_exhausted(ValueError("out of memory"))


def test_the_smallest_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "CGROUP_LIMITS", ())
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    machine = limit_bytes(CPU)
    assert machine > 1 << 28
    container = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUP_LIMITS", (container, tmp_path / "none"))
    container.write_text("max\n")
    assert limit_bytes(CPU) == machine
    container.write_text(f"{1 << 27}\n")
    assert limit_bytes(CPU) == 1 << 27
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1 << 26, resource.RLIM_INFINITY))
    assert limit_bytes(CPU) == 1 << 26
