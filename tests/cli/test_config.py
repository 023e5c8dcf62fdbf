"""`ttrl-pop config`: what is printed can be given back, and what lies on a preset."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli.commands import ttrl

from ttrl_pop.cli.given import Given
from ttrl_pop.config import Config
from ttrl_pop.config_file import load_config
from ttrl_pop.presets import NAMES


@pytest.mark.parametrize("name", [None, *NAMES])
def test_what_is_printed_is_the_configuration_that_was_given(name: str | None, tmp_path: Path) -> None:
    sources = [] if name is None else ["--preset", name]
    printed = ttrl("config", *sources, "--set", "steps=7")
    assert printed.stderr == ""
    (tmp_path / "c.toml").write_text(printed.stdout)
    assert load_config(tmp_path / "c.toml", {}) == Given(name, settings=["steps=7"]).config()


def test_files_lie_on_the_preset_in_their_order_and_flags_on_them(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("steps = 1\nseed = 1\nproblems_per_step = 1\n")
    two.write_text("seed = 2\nproblems_per_step = 2\n")
    config = Given("tiny", [one, two], {"problems_per_step": 3}).config()
    assert (config.steps, config.seed, config.problems_per_step) == (1, 2, 3)
    assert config.population.minds == Given("tiny").config().population.minds != Config().population.minds


def test_the_schema_is_json() -> None:
    assert json.loads(ttrl("config", "--schema").stdout)["properties"]["steps"]["description"].startswith(
        "Steps to train;"
    )


def test_standard_output_is_utf_8_whatever_the_terminal_is() -> None:
    command = [sys.executable, "-P", "-m", "ttrl_pop", "config"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert not done.stdout.decode("utf-8").isascii()


def test_a_preset_that_is_none_is_one_line() -> None:
    refused = ttrl("config", "--preset", "maths", code=2)
    assert refused.stderr == "ttrl-pop: preset must be one of math-chat, math-raw, choice, tiny, got 'maths'\n"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("population.options.sigmas=1", "population.options: unknown key 'sigmas'; did you mean 'sigma'?"),
        ("population.options.sigma=-1", "population.options: sigma"),
        ("population.name=nose", "population must be one of"),
        ("backend_options.grafs=true", "backend_options: unknown key 'grafs'; did you mean 'graphs'?"),
        ("backend=hg", "backend must be one of"),
        ("vote.extract=regex:(", "is not a valid regular expression"),
        ("vote.reward=bogus", "reward must be one of"),
        ("vote.reward=x*format", "a reward is NAME or WEIGHT*NAME"),
        ("vote.grader=fuzzy", "grader must be one of"),
    ],
)
def test_what_a_run_would_refuse_is_not_printed(setting: str, message: str) -> None:
    refused = ttrl("config", "--set", setting, code=2)
    assert message in refused.stderr
    assert refused.stdout == ""


@pytest.mark.parametrize(
    "settings",
    [["vote.reward=gold"], ["backend=auto"], ["backend=vllm"], ["population.name=none"], ["population.name=latent"]],
)
def test_what_a_run_elsewhere_may_take_is_printed(settings: list[str]) -> None:
    ttrl("config", *(part for setting in settings for part in ("--set", setting)))


def test_it_needs_no_torch() -> None:
    script = "import sys; sys.modules['torch'] = None; from ttrl_pop.cli.app import app; app()"
    for arguments in (["config"], ["config", "--schema"], ["config", "--set", "backend=vllm"]):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("beside", [["--preset", "tiny"], ["--config", "c.toml"]], ids=["preset", "config"])
def test_a_run_has_a_configuration_of_its_own(trained: tuple[Path, object], place: Path, beside: list[str]) -> None:
    for command in (["eval", place / "p.jsonl", "--run", trained[0]], ["run", "--resume", trained[0]]):
        refused = ttrl(*command, *beside, code=2)
        assert f"takes its configuration from the run directory; leave {beside[0]} out" in refused.stderr
