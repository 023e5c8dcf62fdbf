"""How much memory a process may take, whether an error says that there was none left, and the way to a device's."""

import math
import mmap
import os
import resource
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files that say what a container may have: version 2, version 1."""

# What libraries say on a failed allocation.
_FAILED = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "alloc_failed")


def limit_bytes(device: torch.device) -> int:
    """Bytes that a process may have on `device`: what the machine has, or less where a container or `ulimit -v` says
    so. It does not depend on what others use at the moment: decisions made by it are made again after a restart."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [_physical_bytes(), *_container_bytes()]
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        limits.append(address_space)
    return min(limits)


def is_exhausted(error: BaseException) -> bool:
    """Whether `error` is a failed allocation. On the CPU torch raises a RuntimeError whose text alone tells."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _FAILED)


def transfer(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers, in lists or an array, as a tensor on `device`. The host does not wait until a GPU takes them, as it
    would with memory that can be moved."""
    host = torch.as_tensor(values, dtype=dtype)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that, on a CPU, take memory page by page once they are written, and give it back to the system at the end.

    Raises:
        MemoryError: the address space does not suffice.
    """
    count = math.prod(shape)
    if device.type != "cpu" or not count:
        return torch.zeros(shape, dtype=dtype, device=device)
    try:
        pages = mmap.mmap(-1, count * dtype.itemsize)
    except OSError as error:
        raise MemoryError(f"no room for {count} numbers of {dtype.itemsize} bytes: {error}") from error
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def _physical_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _container_bytes() -> list[int]:
    texts = [file.read_text().strip() for file in CGROUP_LIMITS if file.is_file()]
    return [int(text) for text in texts if text.isdecimal()]
