"""Tests against vLLM's real engine, on a CPU. `make test-vllm` makes an environment for them; where vLLM is not
installed they are left out."""

import importlib.util
import os
from pathlib import Path

import pytest
from vllm_models import Models

HERE = Path(__file__).parent

os.environ.setdefault("VLLM_CPU_CI_ENV", "1")


if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            # What vLLM warns of is not ours to mend.
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))
