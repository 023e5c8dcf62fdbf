"""Where these tests run: on the GPU where there is one, else on the CPU, so that they are known to work before one is
there. `TTRL_POP_DEVICE` names another device."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

DEVICE = os.environ.get("TTRL_POP_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("gpu")


@pytest.fixture(scope="session")
def device() -> str:
    return DEVICE


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """A run that repeats to the bit asks torch for it, and for good."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def on_cuda(device: str) -> None:
    """For tests of what only CUDA has."""
    if torch.device(device).type != "cuda":
        pytest.skip("takes a CUDA GPU")
