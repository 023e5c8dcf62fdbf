"""The public face: what `import ttrl_pop` gives, and that it gives it only when asked."""

import ast
import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import ROOT

import ttrl_pop

PLUGINS = sorted((ROOT / "examples" / "plugins").glob("*.py"))


def python(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout


def test_importing_the_face_loads_nothing_else_of_the_project() -> None:
    script = "import sys, ttrl_pop; print(*sorted(m for m in sys.modules if m.split('.')[0] in ('ttrl_pop', 'torch')))"
    assert python(script).split() == ["ttrl_pop"]


def test_what_needs_no_torch_is_had_without_it() -> None:
    script = "import sys; from ttrl_pop import {}; print('torch' in sys.modules)"
    light = "Ballot, FinishReason, Grader, Metrics, Mind, Rollout, Section, UsageError, majority, randomness"
    assert python(script.format(light)).strip() == "False"
    assert python(script.format("Population")).strip() == "True"


def test_importing_the_face_takes_no_time() -> None:
    def once() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import ttrl_pop"], check=True)
        return time.perf_counter() - start

    def bare() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        return time.perf_counter() - start

    assert min(once() for _ in range(3)) - min(bare() for _ in range(3)) < 0.1


@pytest.mark.parametrize("name", ttrl_pop.__all__)
def test_every_name_is_the_one_of_its_module(name: str) -> None:
    found = getattr(ttrl_pop, name)
    home = ttrl_pop._HOMES.get(name)
    expected = (
        importlib.import_module(f"ttrl_pop.{name}") if home is None else getattr(importlib.import_module(home), name)
    )
    assert found is expected
    assert name in dir(ttrl_pop)


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse((ROOT / "ttrl_pop" / "__init__.py").read_text())
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == {**ttrl_pop._HOMES, "randomness": "ttrl_pop"}
    assert sorted(seen) == sorted(ttrl_pop.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Populace'"):
        _ = ttrl_pop.Populace  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="Populace"):
        exec("from ttrl_pop import Populace")


@pytest.mark.parametrize("file", PLUGINS, ids=lambda file: file.stem)
def test_an_example_takes_from_the_face_alone(file: Path) -> None:
    nodes = [*ast.walk(ast.parse(file.read_text()))]
    taken = [node for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ttrl_pop")]
    assert [node.module for node in taken] == ["ttrl_pop"]
    assert {alias.name for node in taken for alias in node.names} <= set(ttrl_pop.__all__)
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    assert not [name for name in modules if name.startswith("ttrl_pop")]
