"""Settings as readers and editors see them: the TOML reads back equal, nothing is left out, the page is that of today;
presets are valid, and lie below every other source."""

import json
import re
import subprocess
import sys
import tomllib
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import typer
from fakes import ROOT
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ttrl_pop.cli.app import app
from ttrl_pop.config import Config, ProblemsConfig, Section
from ttrl_pop.config_file import layered, load_config, parse_layer
from ttrl_pop.errors import UsageError
from ttrl_pop.plugins import BUILT_IN, OPTIONS, load, options_of
from ttrl_pop.presets import NAMES, preset
from ttrl_pop.read.problems import read_problems
from ttrl_pop.run.session import check_trainable
from ttrl_pop.settings import commented_toml, json_schema, tables

STRANGE: dict[str, Any] = {
    "stop and date": {"sampling.stop": ["\n", "]", '"', "# x"], "problems.date": "2026-01-02"},
    "marks": {"vote.thinking": ["<a>", "</a>"], "learn.lora.targets": ["q_proj", "v_proj"]},
    "options": {"population.options.sigma": 0.1, "population.options.scope": "completion"},
    "no options": {"population.name": "none"},
    "engine": {"backend": "vllm", "backend_options.slots": 3, "backend_options.engine": {"a b": {"c": [1, {"d": 2}]}}},
    "open engine": {"backend": "auto", "backend_options.anything": True},
    "all set": {"learn.population_lr": 0.1, "learn.tis": False, "vote.label_rollouts": 4, "problems.prompt_key": "q"},
}


def read_back(text: str) -> Config:
    return layered([parse_layer(text, "text")], {})


def keys(section: type[Section], prefix: str = "") -> list[str]:
    found = []
    for name, field in section.model_fields.items():
        inner = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        found += keys(field.annotation, f"{prefix}{name}.") if inner else [prefix + name]  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("overrides", [{}, *STRANGE.values()], ids=["defaults", *STRANGE])
def test_what_is_printed_reads_back_equal(overrides: dict[str, Any]) -> None:
    config = load_config(None, overrides)
    assert read_back(commented_toml(config)) == config


@given(st.lists(st.text(min_size=1, max_size=6).filter(lambda s: "\0" not in s), max_size=3), st.floats(0, 1e3))
def test_any_text_and_any_number_read_back_equal(stop: list[str], lr: float) -> None:
    config = load_config(None, {"sampling.stop": stop, "learn.lr": lr, "vote.extract": "".join(stop) or "auto"})
    assert read_back(commented_toml(config)) == config


def test_every_setting_is_printed_with_what_it_takes_and_what_it_means() -> None:
    told = {f"{table.name}.{s.name}".lstrip("."): s for table in tables(Config()) for s in table.settings}
    options = options_of("population", "norm-noise")
    assert options is not None
    plain = [key for key in keys(Config) if key not in ("population.options", "backend_options")]
    assert [*told] != []
    assert {*told} == {*plain, *(f"population.options.{key}" for key in options.model_fields), "backend_options.graphs"}
    for key, setting in told.items():
        assert setting.meaning.endswith("."), key
        assert setting.takes not in ("", "anything"), key
        assert setting.name in commented_toml(Config())
    assert told["learn.clip_low"].takes == "a number above 0 below 1"
    assert told["learn.loss"].takes == '"grpo" or "dapo" or "dr_grpo" or "gspo"'
    assert told["population.options.sigma"].takes == '"auto" or a number from 0 up to 1000'


def test_a_line_that_is_commented_out_has_the_default() -> None:
    lines = commented_toml(load_config(None, {"population.options.spread": "dim"})).splitlines()
    assert 'spread = "dim"' in lines
    options = [line.removeprefix("# ") for line in lines if re.match(r"# (sigma|target_kl|level|scope) = ", line)]
    found = tomllib.loads("\n".join(options))
    known = load("population", "norm-noise").Options().model_dump()
    assert found == {key: known[key] for key in ("sigma", "target_kl", "level", "scope")}


@pytest.mark.parametrize("kind", OPTIONS)
def test_options_that_are_known_without_torch_are_those_of_the_class(kind: str) -> None:
    for name in BUILT_IN[kind]:
        of_class = load(kind, name).Options
        known = options_of(kind, name)
        assert known is of_class if known else not of_class.model_fields, name


def test_the_schema_knows_every_setting_and_the_options_of_built_in_plug_ins() -> None:
    schema = json_schema()

    def place(dotted: str) -> Any:
        found = schema
        for name in dotted.split("."):
            found = found["properties"][name]
            found = schema["$defs"][found["$ref"].rpartition("/")[2]] if "$ref" in found else found
        return found

    for key in keys(Config):
        assert place(key)["description"], key
    for key, table in (("population.options", "NormNoiseOptions"), ("backend_options", "VllmOptions")):
        assert {"$ref": f"#/$defs/{table}"} in place(key)["anyOf"]
        assert schema["$defs"][table]["properties"]
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("kind", "key", "flag"),
    [
        ("population", "population.name", "--population"),
        ("backend", "backend", "--backend"),
        ("grader", "vote.grader", "--grader"),
        ("reward", "vote.reward", "--reward"),
        ("extractor", "vote.extract", "--extract"),
    ],
)
def test_every_built_in_name_is_told_where_one_is_chosen(kind: str, key: str, flag: str) -> None:
    table, _, name = key.rpartition(".")
    page = (ROOT / "docs" / "SETTINGS.md").read_text()
    section = page.partition(f"## `[{table}]`" if table else "## At the top")[2]
    setting = next(line for line in section.splitlines() if line.startswith(f"| `{name}` |"))
    commands: Any = typer.main.get_command(app)
    told = next(each.help for command in commands.commands.values() for each in command.params if flag in each.opts)
    assert [name for name in BUILT_IN[kind] if f"`{name}`" not in setting] == []
    assert [name for name in BUILT_IN[kind] if not re.search(rf"(?<![-\w]){name}(?![-\w])", told)] == []


def test_the_page_of_fields_is_that_of_today_and_its_rows_are_read() -> None:
    script = ROOT / "dev" / "fields_reference.py"
    made = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    assert made == (ROOT / "docs" / "PROBLEMS.md").read_text(), "python dev/fields_reference.py > docs/PROBLEMS.md"
    lines = made.partition("```json\n")[2].partition("```")[0].splitlines()
    found = read_problems(map(json.loads, lines), ProblemsConfig())
    assert [problem.id for problem in found.problems] == ["p1", "p2", "p3"]
    assert dict(found.answers) == {"p2": "B", "p3": "56"}


def test_the_page_of_settings_is_that_of_today() -> None:
    script = ROOT / "dev" / "settings_reference.py"
    made = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    assert made == (ROOT / "docs" / "SETTINGS.md").read_text(), "python dev/settings_reference.py > docs/SETTINGS.md"
    names = {key.rpartition(".")[2] for key in keys(Config)} - {"options", "backend_options"}
    assert [name for name in names if f"| `{name}` |" not in made] == []


# --- presets ---


def test_every_preset_is_a_file_and_is_named_in_the_help() -> None:
    folder = ROOT / "ttrl_pop" / "presets"
    assert sorted(NAMES) == sorted(file.stem for file in folder.glob("*.toml"))
    text = " ".join(CliRunner().invoke(app, ["run", "--help"]).stdout.split())
    assert f"{', '.join(NAMES[:-1])} or {NAMES[-1]}" in text


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_a_configuration_that_trains_and_reads_back_equal(name: str) -> None:
    config = layered([parse_layer(preset(name), name)], {})
    check_trainable(config)
    assert config != Config()
    assert read_back(commented_toml(config)) == config
    options = options_of("population", config.population.name)
    assert options is not None
    options.model_validate(config.population.options)


def test_a_preset_that_is_none_is_told_which_there_are() -> None:
    with pytest.raises(UsageError, match=r"preset must be one of math-chat, math-raw, choice, tiny, got '\.\./x'"):
        preset("../x")


# --- layers ---


def test_a_later_file_wins_and_leaves_the_rest(tmp_path: Path) -> None:
    one = parse_layer("steps = 1\nseed = 1\n[learn]\nlr = 1.0\nkl = 1.0\n[sampling]\nstop = ['a']", "one")
    two = parse_layer("seed = 2\n[learn]\nlr = 2.0\n[sampling]\nstop = ['b']", "two")
    config = layered([one, two], {"learn.kl": 3.0})
    assert (config.steps, config.seed, config.learn.lr, config.learn.kl) == (1, 2, 2.0, 3.0)
    assert config.sampling.stop == ("b",)
    assert layered([two, one], {}).seed == 1
    assert one.tree["learn"] == {"lr": 1.0, "kl": 1.0}, "a layer is not changed by what lies on it"


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (("stepz = 1", "seed = 1"), "file 0: unknown key 'stepz'"),
        (("seed = 1", "stepz = 1"), "file 1: unknown key 'stepz'"),
        (("[population]\nminds = 200", "[population]\nsamples_per_mind = 200"), "file 1: population: minds × samples"),
        (("seed = 1", "seed = 2"), "command line: unknown key 'x'"),
    ],
)
def test_the_file_that_is_wrong_is_named(texts: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError) as error:
        layered([parse_layer(text, f"file {number}") for number, text in enumerate(texts)], {"x": 1})
    assert str(error.value).startswith(says)


NOISE = "[population]\noptions = {sigma = 0.1}\n"
GRAPHS = "backend_options = {graphs = true}\n"


@pytest.mark.parametrize(
    ("texts", "key", "expected"),
    [
        ((NOISE, "[population]\nminds = 3"), "population.options", {"sigma": 0.1}),
        (
            (NOISE, NOISE.replace("sigma = 0.1", "spread = 'dim'")),
            "population.options",
            {"sigma": 0.1, "spread": "dim"},
        ),
        ((NOISE, "[population]\nname = 'none'"), "population.options", {}),
        ((GRAPHS, "backend = 'vllm'\nbackend_options = {slots = 2}"), "backend_options", {"slots": 2}),
        ((f"backend = 'auto'\n{GRAPHS}", "backend = 'vllm'"), "backend_options", {"graphs": True}),
    ],
)
def test_options_go_with_the_plug_in_that_they_were_given_for(
    texts: tuple[str, ...], key: str, expected: dict[str, Any]
) -> None:
    config = layered([parse_layer(text, "file") for text in texts], {})
    assert reduce(getattr, key.split("."), config) == expected
