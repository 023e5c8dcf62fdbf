"""Kernels of a GPU that give the same bits each time."""

import os
import warnings

import torch


def repeat_to_the_bit() -> None:
    """From now on take kernels that repeat to the bit, where torch has them; elsewhere those that there are. Must come
    before the first product on a GPU (https://docs.pytorch.org/docs/stable/notes/randomness.html)."""
    # cuBLAS reads it once; without workspaces of a fixed size it may add up in another order.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Of sums along a row torch says that they do not repeat, though those of rows side by side do.
    warnings.filterwarnings("ignore", message=".* does not have a deterministic implementation")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # What is not yet written is read by nobody here; filling it takes a pass of its own.
    torch.utils.deterministic.fill_uninitialized_memory = False
