"""What torch is told of a CUDA GPU: whether kernels must repeat to the bit, and which of its warnings say nothing."""

import os
import warnings

import torch
from torch import Tensor


def quiet() -> None:
    """From now on leave unsaid what torch says once on any GPU, though nothing is wrong."""
    # Its thread for the backward pass finds the context that all others use.
    warnings.filterwarnings("ignore", message="Attempting to run cuBLAS, but there was no current CUDA context")


def repeat_to_the_bit() -> None:
    """From now on take kernels that repeat to the bit; what has none fails. Must come before the first product on a GPU
    (https://docs.pytorch.org/docs/stable/notes/randomness.html)."""
    # cuBLAS reads it once; without workspaces of a fixed size it may add up in another order.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # What is not yet written is read by nobody here; filling it takes a pass of its own.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set by its own module


def cumulative_(values_BV: Tensor) -> Tensor:
    """Sums of each row up to each place, which take the place of the values; to the bit where that was asked for."""
    if values_BV.device.type != "cuda" or not torch.are_deterministic_algorithms_enabled():
        return values_BV.cumsum_(-1)
    # torch refuses all sums of this kind, though of rows side by side each is added up by one block, in order; a row
    # alone is shared out among blocks, which do not wait for each other.
    alone = len(values_BV) == 1
    rows = values_BV.expand(2, -1) if alone else values_BV
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="cumsum.* does not have a deterministic implementation")
            sums = rows.cumsum(-1)
    finally:
        torch.use_deterministic_algorithms(True)
    return sums[:1] if alone else sums
