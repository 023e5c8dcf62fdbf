"""Flags: what was typed comes to a command as its own parameters and as what is given for the configuration."""

from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ttrl_pop.cli.flags import SETTINGS, Problems, takes
from ttrl_pop.cli.given import Given
from ttrl_pop.config import Config


@pytest.mark.parametrize("flag", SETTINGS)
def test_a_setting_has_the_key_of_a_value(flag: str) -> None:
    reduce(getattr, SETTINGS[flag].key.split("."), Config())


def typed(*arguments: str) -> tuple[Given, dict[str, Any]]:
    """What a command with a few flags gets when this is typed."""
    got = []
    app = typer.Typer()

    @app.command()
    @takes("lr", "problems", "id_key", "raw", "config", "set")
    def command(given: Given, problems: Problems, id_key: str = "id") -> None:
        got.append((given, {"problems": problems, "id_key": id_key}))

    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return got[0]


def given(file: Path, overrides: dict[str, Any], *settings: str) -> Config:
    return Given(files=[file], overrides=overrides, settings=settings).config()


def test_what_is_typed_comes_as_parameters_and_as_given() -> None:
    given, own = typed("p.jsonl", "--raw", "--lr", "0.5", "--set", "a=1", "--set", "b=2", "--config", "c.toml")
    assert own == {"problems": "p.jsonl", "id_key": "id"}
    assert given == Given(None, [Path("c.toml")], {"learn.lr": 0.5, "problems.form": "raw"}, ["a=1", "b=2"])
    given, own = typed("p.jsonl", "--chat", "--id-key", "name")
    assert own == {"problems": "p.jsonl", "id_key": "name"}, "a parameter of the command's own comes before the table"
    assert given == Given(None, (), {"learn.lr": None, "problems.form": "chat"}, ())


def test_a_command_that_does_not_place_a_flag_of_its_own_is_refused() -> None:
    with pytest.raises(AssertionError, match="where these flags stand"):
        takes("lr")(lambda given, problems: None)


def test_a_table_of_set_sets_what_is_in_it_and_no_more(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[population]\nsamples_per_mind = 2\n[population.options]\nsigma = 0.2\n")
    config = Given(files=[file], settings=["population={minds=3}", "backend_options={graphs=false}"]).config()
    assert (config.population.minds, config.population.samples_per_mind) == (3, 2)
    assert config.population.options == {"sigma": 0.2}
    assert config.backend_options == {"graphs": False}
    # Options belong to who is named with them, in a table as well.
    assert Given(files=[file], settings=["population={name='none'}"]).config().population.options == {}
    # An empty one empties it.
    assert Given(files=[file], settings=["population.options={}"]).config().population.options == {}
    # A name with a dot in it is one name.
    assert Given(settings=["backend_options={'a.b'=1}"]).values() == {"backend_options": {"a.b": 1}}


def test_defaults_yield_to_the_file_the_file_to_flags_and_flags_to_set(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("steps = 2\nseed = 2\nproblems_per_step = 2\n")
    config = given(file, {"seed": 3, "problems_per_step": 3, "steps": None}, "problems_per_step=4")
    assert (config.steps, config.seed, config.problems_per_step) == (2, 3, 4)
    assert config.backend == Config().backend


def test_another_population_does_not_get_the_options_of_the_one_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[population]\nname = 'norm-noise'\noptions = {sigma = 0.1}\n")
    assert given(file, {"population.name": "norm-noise"}).population.options == {"sigma": 0.1}
    assert given(file, {"population.name": "none"}).population.options == {}


def test_another_backend_does_not_get_the_options_of_the_one_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("backend = 'hf'\nbackend_options = {graphs = false}\n")
    assert given(file, {"backend": "hf"}).backend_options == {"graphs": False}
    assert given(file, {"backend": "vllm"}, "backend_options.slots=2").backend_options == {"slots": 2}
