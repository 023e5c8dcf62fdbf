"""How the process takes memory from the system. Tensors of megabytes come and go all the time here, and every page
that is taken anew costs more than the arithmetic on it."""

import contextlib
import ctypes
import os
import resource

# Parameters in malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
FROM_SYSTEM = 2**25
"""Bytes from which on an allocation is taken from the system and given back at once; glibc accepts no larger bound."""
FROM_SYSTEM_LIMITED = 2**20
"""The same where address space is limited (`ulimit -v`): what is kept in pieces is missed there when a whole is asked
for."""
PREPARED_PRODUCTS = "32"
"""Shapes of products for which torch and oneDNN each keep what they have prepared; 1,024 by themselves. One takes some
2 MB of addresses and 0.6 MB of memory (dev/LOG.md), and each number of tokens is another one. A forward and its
backward need about 12."""


def configure() -> None:
    """Keep what was freed for the next tensor, ask for pages of 2 MiB, and bound what libraries keep for themselves.

    Must come before torch is loaded, which reads its settings once. What the environment says goes first; where the C
    library is not glibc, it has its own ways.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("LRU_CACHE_CAPACITY", PREPARED_PRODUCTS)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", PREPARED_PRODUCTS)
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    settings = {"MALLOC_MMAP_THRESHOLD_": (_MMAP_THRESHOLD, FROM_SYSTEM_LIMITED if limited else FROM_SYSTEM)}
    if limited:
        # Each arena would reserve 64 MiB of addresses.
        settings["MALLOC_ARENA_MAX"] = (_ARENA_MAX, 1)
    else:
        settings["MALLOC_TRIM_THRESHOLD_"] = (_TRIM_THRESHOLD, -1)
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for name, (parameter, value) in settings.items():
            if name not in os.environ:
                mallopt(parameter, value)
