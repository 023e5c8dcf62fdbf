"""Memory: what a process may have, and which errors say that it had too little."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ttrl_pop.kernels import memory
from ttrl_pop.kernels.memory import is_exhausted, limit_bytes, zeros

CPU = torch.device("cpu")


def test_an_allocation_that_torch_refuses_is_known() -> None:
    # In a process of its own: the limit would hold for the tests that follow.
    code = """
import resource, torch
from ttrl_pop.kernels.memory import is_exhausted
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
try:
    torch.zeros(8 << 30)
except RuntimeError as error:
    assert is_exhausted(error), error
    print("known")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "known\n", done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells what is resident")
def test_zeros_take_memory_once_they_are_written_and_give_it_back() -> None:
    def resident() -> int:
        (line,) = (row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmRSS:"))
        return int(line.split()[1]) >> 10

    before = resident()
    tensor = zeros((1 << 20, 256), torch.float32, CPU)
    assert resident() - before < 50
    tensor[: 1 << 17] = 1.0
    assert 120 < resident() - before < 180
    assert float(tensor[(1 << 17) - 1 : (1 << 17) + 1].sum()) == 256
    del tensor
    assert resident() - before < 50


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_zeros_have_the_shape_and_type_that_is_asked_for(dtype: torch.dtype) -> None:
    for shape in ((3, 0, 5), (2, 3, 7)):
        assert torch.equal(zeros(shape, dtype, CPU), torch.zeros(shape, dtype=dtype))


def test_zeros_that_do_not_fit_are_a_failed_allocation() -> None:
    code = """
import resource, torch
from ttrl_pop.kernels.memory import is_exhausted, zeros
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
try:
    zeros((8, 1 << 30), torch.float32, torch.device("cpu"))
except MemoryError as error:
    assert is_exhausted(error)
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "no room for 8589934592 numbers of 4 bytes: [Errno 12] Cannot allocate memory\n", done.stderr


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
