"""Shape and type annotations are checked in tests only."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Workers run side by side, and so do the processes that they start: threads that wait for each other at every product
# make all of them several times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where it is noted which runs may import their plug-ins: not in the home of whoever tests.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="ttrl-pop-state-")

from jaxtyping import install_import_hook

install_import_hook("ttrl_pop", "beartype.beartype")

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# How long an example takes says what else the machine does.
hypothesis.settings.register_profile("ttrl-pop", deadline=None)
hypothesis.settings.load_profile("ttrl-pop")

FIRST = (
    *("test_demo.py", "vote/graders/test_math.py", "cli/test_pipes.py", "test_resume.py", "cli/test_run.py"),
    *("cli/test_ranks.py", "test_examples.py", "fit/test_planted.py"),
)
"""Files that take longest; begun last, one process would be left alone with them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.relative_to(here).as_posix(), len(FIRST)))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny tensors are slower on many threads, and workers run side by side."""
    torch.set_num_threads(1)
