"""Imports point down only, from floor to floor."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "ttrl_pop"
FLOORS = [
    ("__main__",),
    ("cli",),
    ("train", "fit"),
    ("run",),
    ("sample", "learn", "store"),
    ("model", "vote"),
    ("packing", "population", "report", "read"),
    ("kernels",),
    ("types", "config", "config_file", "errors", "plugins", "randomness", "text", "__init__"),
]
"""From the top. A room (a wing, or a module of the root) imports from the floors below and from itself; rooms of the
lowest floor import each other."""
FILES = sorted(ROOT.rglob("*.py"))


def room(module: str) -> str:
    """`ttrl_pop.vote.clusters` → `vote`."""
    return [*module.split("."), "__init__"][1]


def module(file: Path) -> str:
    return ".".join(["ttrl_pop", *file.relative_to(ROOT).with_suffix("").parts])


def imported(source: str) -> Iterator[str]:
    """Dotted names that a file imports, the ones for type checkers and inside functions among them."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def upwards(name: str, source: str) -> list[str]:
    """What the file `source` of room `name` imports from its own floor or one above."""
    found = [target for target in imported(source) if target.startswith("ttrl_pop.")]
    others = [target for target in found if room(target) not in (name, "__version__")]
    lowest = len(FLOORS) - 1 if name in FLOORS[-1] else -1
    return [target for target in others if floor(room(target)) <= floor(name) and floor(room(target)) != lowest]


@pytest.mark.parametrize("file", FILES, ids=module)
def test_imports_point_down(file: Path) -> None:
    assert upwards(room(module(file)), file.read_text()) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("vote", "from ttrl_pop.run.session import Session"),
        ("sample", "from ttrl_pop.learn import grpo"),
        ("types", "import ttrl_pop.kernels.memory"),
    ],
)
def test_an_import_upwards_is_seen(name: str, line: str) -> None:
    assert len(upwards(name, f"def later():\n    {line}\n")) == 1


def test_every_module_has_a_docstring() -> None:
    for file in FILES:
        assert ast.get_docstring(ast.parse(file.read_text())), file


def test_what_needs_no_torch_imports_none() -> None:
    light = [
        *(name for name in FLOORS[-1] if name != "__init__"),
        *("read.problems", "read.rollouts", "report.measures", "kernels.malloc"),
        *("vote.extract", "vote.vote", "vote.rules", "vote.graders.exact", "vote.rewards.base", "vote.rewards.novelty"),
        *("cli.app", "cli.inputs", "cli.interrupts", "cli.stdout", "cli.printing", "cli.vote", "cli.display.live"),
    ]
    script = "; ".join(f"import ttrl_pop.{name}" for name in light)
    script += "; import sys; assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_problem_cannot_carry_an_answer() -> None:
    from ttrl_pop.types import Problem

    assert set(Problem.__slots__) == {"id", "prompt", "index"}


def test_only_report_and_evaluation_read_gold() -> None:
    # `rewards` holds the gold reward, which has to be asked for by name.
    readers = {module(file) for file in FILES if re.search(r"\bAnswerKey\b", file.read_text())}
    assert readers == {
        f"ttrl_pop.{name}"
        for name in (
            "types",
            "read.problems",
            "report.step",
            "report.rows",
            "report.gold",
            "report.measures",
            "vote.rewards.base",
            "vote.rewards.gold",
            "vote.rules",
            "run.session",
            "cli.vote",
        )
    }
