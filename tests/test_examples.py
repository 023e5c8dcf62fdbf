"""Every file in examples/ is used: the command line that a plug-in's docstring shows is run as it stands, on TinyLM."""

import ast
import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import safetensors.torch
import torch
from fakes import save_tiny, tiny_policy

from ttrl_pop import checkpoint
from ttrl_pop.checkpoint import RunDirectory
from ttrl_pop.cli import app
from ttrl_pop.config import Config, load_config
from ttrl_pop.plugins import load
from ttrl_pop.populations.base import MEAN
from ttrl_pop.session import check_trainable
from ttrl_pop.types import Mind

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PLUGINS = {
    "backend_logged.py": ("backend", "backend_logged:LoggedBackend"),
    "grader_casefold.py": ("grader", "grader_casefold:CasefoldGrader"),
    "population_scale.py": ("population", "population_scale:NormScale"),
    "reward_short.py": ("reward", "reward_short:short_majority"),
}
SMALL = [
    *("--minds=6", "--steps=1", "--lr=0.01", "--quiet"),
    *("--set", "sampling.max_new_tokens=5", "--set", 'sampling.stop=["1","2","3","4","5","a","b","c","d","e"]'),
    *("--set", "sampling.temperature=2.0", "--set", "learn.mask_truncated=false", "--set", "learn.lora.rank=2"),
]
IDS = torch.arange(3, 3 + 4 * 9).reshape(4, 9)
MINDS = [Mind(11), Mind(12), Mind(11), MEAN]


@dataclass(frozen=True)
class Finished:
    run: RunDirectory
    folder: Path
    """Working directory of the command."""

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return list(checkpoint.read_lines(self.run.metrics))

    @property
    def rollouts(self) -> list[dict[str, Any]]:
        return list(checkpoint.read_lines(self.run.rollouts(1)))

    @property
    def answers(self) -> list[dict[str, Any]]:
        return list(checkpoint.read_lines(self.run.answers))

    def population(self, step: int) -> dict[str, torch.Tensor]:
        return safetensors.torch.load_file(self.run.checkpoint(step) / "population.safetensors")


RunPlugin = Callable[..., Finished]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run_plugin(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> RunPlugin:
    """Run what the docstring of a plug-in shows, with `SMALL` and further arguments behind it."""
    shutil.copy(EXAMPLES / "times-table.jsonl", tmp_path / "problems.jsonl")
    monkeypatch.chdir(tmp_path)

    def run(file: str, *more: str, out: str = "run") -> Finished:
        folder, arguments = command_line(EXAMPLES / "plugins" / file)
        monkeypatch.syspath_prepend(ROOT / folder)
        app([*arguments, *SMALL, "--model", str(tiny), "--out", out, *more], standalone_mode=False)
        return Finished(RunDirectory(tmp_path / out), tmp_path)

    return run


def command_line(file: Path) -> tuple[str, list[str]]:
    """The folder on PYTHONPATH and the arguments in `PYTHONPATH=... ttrl-pop ...` of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(file.read_text()))
    assert docstring, f"{file.name} has no docstring"
    lines = docstring.replace("\\\n", " ").splitlines()
    (shown,) = [line for line in lines if "ttrl-pop" in line.split()]
    path, program, *arguments = shlex.split(shown)
    name, _, folder = path.partition("=")
    assert (name, program) == ("PYTHONPATH", "ttrl-pop")
    return folder, arguments


def test_every_example_is_named_by_a_test() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    files = {path for path in EXAMPLES.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.name for path in files if path.parent.name == "plugins"} == set(PLUGINS)
    assert not [path.name for path in files if path.name not in tests]


@pytest.mark.parametrize("file", PLUGINS)
def test_a_plug_in_is_loaded_by_the_command_line_in_its_docstring(file: str, run_plugin: RunPlugin) -> None:
    kind, name = PLUGINS[file]
    finished = run_plugin(file)
    config = load_config(finished.run.config, {})
    chosen = {
        "population": config.population.name,
        "backend": config.backend,
        "grader": config.vote.grader,
        "reward": config.vote.reward,
    }
    assert chosen == {**DEFAULTS, kind: name}
    assert Path(load(kind, name).__code__.co_filename if kind == "reward" else module_file(load(kind, name))) == (
        EXAMPLES / "plugins" / file
    )
    (row,) = finished.metrics
    assert row["learn/updates"] == 1
    assert row["learn/groups_used"] > 0


DEFAULTS = {
    "population": Config().population.name,
    "backend": Config().backend,
    "grader": Config().vote.grader,
    "reward": Config().vote.reward,
}


def module_file(kind: type) -> str:
    import sys

    file = sys.modules[kind.__module__].__file__
    assert file is not None
    return file
