"""How the process takes memory from the system. Tensors of megabytes come and go all the time here, and every page
that is taken anew costs more than the arithmetic on it."""

import contextlib
import ctypes
import os

# Of malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
FROM_SYSTEM = 2**25
"""Bytes of an allocation from which on it is taken from the system and given back at once; glibc takes no more."""


def keep_memory() -> None:
    """Keep what was freed for the next tensor, and ask for pages of 2 MiB. Must come before torch is loaded, which
    reads its setting once. What the environment says goes first; where the C library is not glibc, it has its own ways.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
            mallopt(_TRIM_THRESHOLD, -1)
        if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
            mallopt(_MMAP_THRESHOLD, FROM_SYSTEM)
