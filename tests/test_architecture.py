"""Imports point down only; the level of a module is written here."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "ttrl_pop"
LEVELS = [
    # 0: no torch
    ("types", "config", "plugins", "errors", "streams", "boxes", "interrupts", "allocator", "rows", "__init__"),
    # 1
    (
        "populations",
        "models",
        "memory",
        "products",
        "layers",
        "fuse",
        "attention",
        "packing",
        "policy",
        "backends",
        "graders",
        "extract",
        "rewards",
        "novelty",
        "grpo",
        "measures",
        "history",
        "guard",
    ),
    # 2: the verbs; never each other
    ("problems", "rollouts", "sample", "vote", "learn", "report", "checkpoint"),
    # 3
    ("rules", "session", "inputs"),
    # 4
    ("train", "evaluate", "calibrate"),
    # 5
    ("display",),
    # 6
    ("output",),
    # 7
    ("commands", "vote_command"),
    # 8
    ("cli",),
    # 9
    ("__main__",),
]
VERBS = LEVELS[2]
# Within a level of several modules, what may import what.
ALLOWED = {
    ("plugins", "errors"),
    ("config", "errors"),
    ("rows", "errors"),
    ("populations", "grpo"),
    ("layers", "products"),
    ("fuse", "layers"),
    ("fuse", "memory"),
    ("fuse", "products"),
    ("packing", "attention"),
    ("packing", "memory"),
    ("policy", "models"),
    ("policy", "attention"),
    ("policy", "fuse"),
    ("policy", "memory"),
    ("policy", "packing"),
    ("policy", "populations"),
    ("backends", "policy"),
    ("backends", "populations"),
    ("backends", "attention"),
    ("backends", "memory"),
    ("backends", "packing"),
    ("rewards", "graders"),
    ("novelty", "rewards"),
    ("session", "rules"),
}


def modules() -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for file in sorted(ROOT.rglob("*.py")):
        found.setdefault(file.relative_to(ROOT).parts[0].removesuffix(".py"), []).append(file)
    return found


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {
                f"{node.module}.{alias.name}" if node.module == "ttrl_pop" else node.module for alias in node.names
            }
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def level(module: str) -> int:
    return next(i for i, names in enumerate(LEVELS) if module in names)


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_down(module: str) -> None:
    for file in modules()[module]:
        for name in imported(file):
            if not name.startswith("ttrl_pop."):
                continue
            other = name.split(".")[1]
            if other in (module, "__version__"):
                continue
            assert level(other) < level(module) or (module, other) in ALLOWED, f"{file.name} imports {name}"


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_do_not_import_each_other(verb: str) -> None:
    for file in modules()[verb]:
        assert not {name.split(".")[1] for name in imported(file) if name.startswith("ttrl_pop.")} & (
            set(VERBS) - {verb}
        )


def test_every_module_has_a_docstring() -> None:
    for files in modules().values():
        for file in files:
            assert ast.get_docstring(ast.parse(file.read_text())), file


def test_what_needs_no_torch_imports_none() -> None:
    light = [
        *LEVELS[0][:-1],
        "problems",
        "rollouts",
        "extract",
        "vote",
        "rewards",
        "measures",
        "graders.exact",
        "display",
        "inputs",
        "rules",
        "novelty",
        "interrupts",
        "output",
        "vote_command",
        "cli",
    ]
    script = "; ".join(f"import ttrl_pop.{name}" for name in light)
    script += "; import sys; assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_problem_cannot_carry_an_answer() -> None:
    from ttrl_pop.types import Problem

    assert set(Problem.__slots__) == {"id", "prompt", "index"}


def test_only_report_and_evaluation_read_gold() -> None:
    # `rewards` holds the gold reward, which has to be asked for by name.
    readers = {m for m, files in modules().items() for f in files if re.search(r"\bAnswerKey\b", f.read_text())}
    assert readers == {"types", "problems", "report", "measures", "rewards", "rules", "session", "vote_command"}
