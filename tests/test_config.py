"""Configuration: precedence, unknown keys, round trip."""

import json
import math
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from fakes import CASES, text_of
from hypothesis import given
from hypothesis import strategies as st

from ttrl_pop.cli.inputs import flat
from ttrl_pop.config import Config, LoraConfig, Section
from ttrl_pop.config_file import dump_config, load_config, parse_assignment, validate
from ttrl_pop.errors import UsageError
from ttrl_pop.plugins import BUILT_IN, load
from ttrl_pop.population.options import NormNoiseOptions
from ttrl_pop.settings import ELSEWHERE


def write(folder: Path, text: str) -> Path:
    path = folder / "c.toml"
    path.write_text(text)
    return path


def test_defaults_are_below_the_file_and_the_file_below_flags(tmp_path: Path) -> None:
    path = write(tmp_path, "steps = 7\nseed = 5\n[learn]\nlr = 1e-3\n")
    config = load_config(path, {"steps": 9, "seed": None, "population.minds": 3})
    assert (config.steps, config.seed, config.learn.lr, config.population.minds) == (9, 5, 1e-3, 3)
    assert config.learn.clip_low == Config().learn.clip_low
    assert config.group_size == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz = 3", "unknown key 'stepz'; did you mean 'steps'?"),
        ("[learn]\nlrr = 3", "unknown key 'learn.lrr'; did you mean 'learn.lr'?"),
        ("[learn.lora]\nrnk = 3", "unknown key 'learn.lora.rnk'; did you mean 'learn.lora.rank'?"),
        ("lr = 3", "unknown key 'lr'; did you mean 'learn.lr'?"),
        ("[population]\nsigma = 1", "unknown key 'population.sigma'; did you mean 'population.options.sigma'?"),
        ("[population]\nname = 'latent'\nbits = 1", "did you mean 'population.options.bits'?"),
        ("graphs = true", "unknown key 'graphs'; did you mean 'backend_options.graphs'?"),
        ("[population]\nname = 'no.such:Thing'\nsigma = 1", "unknown key 'population.sigma'; did you mean"),
        ("[learn]\nlearning_rate = 3", "unknown key 'learn.learning_rate'; did you mean 'learn.lr'?"),
        ("mind = 3", "unknown key 'mind'; did you mean 'population.minds'?"),
        ("max_tokens = 3", "unknown key 'max_tokens'; did you mean 'sampling.max_new_tokens'?"),
        ("[sampling]\nminds = 3", "unknown key 'sampling.minds'; did you mean 'population.minds'?"),
        ("steps = -1", "steps: Input should be greater than or equal to 0, got -1"),
        ("[learn]\nloss = 'ppo'", "learn.loss: Input should be 'grpo', 'dapo', 'dr_grpo' or 'gspo', got 'ppo'"),
        ("[learn]\nlr = nan", "learn.lr"),
        ("steps = ", "not valid TOML"),
    ],
)
def test_errors_name_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as error:
        load_config(path, {})
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_error_names_the_command_line_where_the_file_is_right(tmp_path: Path) -> None:
    right, wrong = write(tmp_path, "steps = 3"), tmp_path / "wrong.toml"
    wrong.write_text("stepz = 3")
    with pytest.raises(UsageError, match=r"^command line: unknown key 'learn.reward'; did you mean 'vote.reward'\?$"):
        load_config(right, {"learn.reward": 2})
    with pytest.raises(UsageError, match=r"wrong.toml: unknown key 'stepz'"):
        load_config(wrong, {"learn.lr": 1e-3})


def test_options_of_a_plug_in_are_checked_too() -> None:
    with pytest.raises(UsageError, match=r"population.options: unknown key 'sgima'; did you mean 'sigma'\?"):
        validate(NormNoiseOptions, {"sgima": 0.1}, "population.options")
    assert validate(NormNoiseOptions, {"sigma": 0.1}, "population.options").sigma == 0.1
    assert validate(NormNoiseOptions, {"sigma": "auto"}, "population.options").sigma == "auto"


class Unions(Section):
    needed: int
    pair: tuple[int, str] | None = None
    mixed: tuple[int | str, ...] = ()
    table: dict[str, int] | int = 0
    mode: Literal["fast"] | Literal["slow"] | bool = "fast"


@pytest.mark.parametrize(
    ("model", "tree", "message"),
    [
        (NormNoiseOptions, {"sigma": -1}, "sigma: Input should be greater than or equal to 0, got -1"),
        (NormNoiseOptions, {"sigma": math.inf}, "sigma: Input should be a finite number, got inf"),
        (NormNoiseOptions, {"sigma": "big"}, "sigma: Input should be 'auto' or a number, got 'big'"),
        (NormNoiseOptions, {"sigma": [1]}, "sigma: Input should be 'auto' or a number, got [1]"),
        (LoraConfig, {"targets": 3}, "targets: Input should be a text or a list, got 3"),
        (LoraConfig, {"targets": ["q_proj", 3]}, "targets.1: Input should be a text, got 3"),
        (
            Config,
            {"learn": {"lora": {"targets": {"a": 1}}}},
            "learn.lora.targets: Input should be a text or a list, got",
        ),
        (Config, {"learn": {"lora": 3}}, "learn.lora: Input should be a table, got 3"),
        (Config, {"learn": {"tis": "maybe"}}, "learn.tis: Input should be true or false, got 'maybe'"),
        (Config, {"learn": {"population_lr": -1}}, "learn.population_lr: Input should be greater than or equal to 0"),
        (Config, {"vote": {"labels": 3}}, "vote.labels: Input should be 'minds', 'base' or 'average', got 3"),
        (
            Config,
            {"vote": {"thinking": "<plan>"}},
            "vote.thinking: Input should be true or false or a list, got '<plan>'",
        ),
        (Config, {"vote": {"thinking": ["<plan>"]}}, "vote.thinking.1: must be given"),
        (Config, {"vote": {"thinking": ["<plan>", ""]}}, "vote.thinking.1: String should have at least 1 character"),
        (Config, {"sampling": {"stop": "x"}}, "sampling.stop: Input should be a list, got 'x'"),
        (Config, {"sampling": {"stop": ["x", 1]}}, "sampling.stop.1: Input should be a text, got 1"),
        (Config, {"steps": 1.5}, "steps: Input should be a whole number, got 1.5"),
        (Unions, {}, "needed: must be given"),
        (Unions, {"needed": 1, "pair": [1]}, "pair.1: must be given"),
        (Unions, {"needed": 1, "pair": ["x", "y"]}, "pair.0: Input should be a whole number, got 'x'"),
        (Unions, {"needed": 1, "mixed": [1, "x", [2]]}, "mixed.2: Input should be a whole number or a text, got [2]"),
        (Unions, {"needed": 1, "table": "x"}, "table: Input should be a table or a whole number, got 'x'"),
        (Unions, {"needed": 1, "table": {"a": "x"}}, "table.a: Input should be a whole number, got 'x'"),
        (Unions, {"needed": 1, "mode": "slo"}, "mode: Input should be 'fast' or 'slow' or true or false, got 'slo'"),
    ],
)
def test_a_value_that_does_not_fit_is_told_what_would(model: type[Section], tree: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        validate(model, tree, "file")
    assert str(error.value).startswith(f"file: {message}")


def sections(model: type[Section]) -> Iterator[type[Section]]:
    """A table and those inside it."""
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from sections(field.annotation)


OPTIONS = [load(kind, name).Options for kind in ("population", "backend") for name in BUILT_IN[kind]]


@pytest.mark.parametrize("table", [*sections(Config), *OPTIONS], ids=lambda table: table.__qualname__)
def test_every_table_and_every_setting_is_described(table: type[Section]) -> None:
    assert table.__doc__ or table in OPTIONS
    for name, field in table.model_fields.items():
        text = (field.description or "").strip()
        assert re.match(r"[A-Z`/]", text), name
        assert text.endswith("."), name
        assert text.split()[0] not in {"Of", "Those", "That", "Its", "Theirs"}, name


def test_a_negative_sigma_on_the_command_line_is_told_its_range() -> None:
    config = load_config(None, {"population.options.sigma": -1})
    with pytest.raises(
        UsageError, match=r"^population.options: sigma: Input should be greater than or equal to 0, got -1"
    ):
        validate(NormNoiseOptions, config.population.options, "population.options")


@given(
    st.integers(1, 10**6),
    st.floats(0, 1e3, allow_nan=False),
    st.lists(st.text(min_size=1, max_size=5).filter(lambda s: "\x00" not in s), max_size=3),
    st.one_of(st.none(), st.floats(0, 1)),
)
def test_a_saved_configuration_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, steps: int, lr: float, stop: list[str], population_lr: float | None
) -> None:
    config = load_config(
        None, {"steps": steps, "learn.lr": lr, "sampling.stop": stop, "learn.population_lr": population_lr}
    )
    path = tmp_path_factory.mktemp("config") / "c.toml"
    path.write_text(dump_config(config), encoding="utf-8", newline="")
    assert load_config(path, {}) == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learn.loss=grpo", ("learn.loss", "grpo")),
        ("learn.lr=1e-3", ("learn.lr", 1e-3)),
        ("baseline=true", ("baseline", True)),
        ('sampling.stop=["\\n", "."]', ("sampling.stop", ["\n", "."])),
        ("a=b=c", ("a", "b=c")),
    ],
)
def test_assignments(text: str, expected: tuple[str, object]) -> None:
    assert parse_assignment(text) == expected


def test_an_assignment_needs_an_equals_sign() -> None:
    with pytest.raises(UsageError, match="KEY=VALUE"):
        parse_assignment("learn.lr")
    with pytest.raises(UsageError, match="'steps' is a value"):
        load_config(None, {"steps": 3, "steps.x": 4})


SETTINGS = json.loads((CASES / "settings.json").read_text())


@pytest.mark.parametrize("case", SETTINGS["refused"], ids=lambda case: ascii(text_of(case["set"]))[1:50])
def test_a_setting_that_cannot_be_is_one_short_line(case: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as error:
        load_config(None, dict([parse_assignment("=".join(map(text_of, case["set"])))]))
    assert case["says"] in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("case", SETTINGS["taken"], ids=lambda case: ascii(text_of(case["set"]))[1:50])
def test_a_setting_that_can_be_is_taken_and_saved(case: dict[str, Any], tmp_path: Path) -> None:
    config = load_config(None, dict([parse_assignment("=".join(map(text_of, case["set"])))]))
    (tmp_path / "c.toml").write_text(dump_config(config), newline="")
    assert load_config(tmp_path / "c.toml", {}) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = " + b"[" * 5000 + b"]" * 5000, "values are nested at most 20 deep; this is deeper"),
        (b"a" + b".a" * 2000 + b" = 1", "values are nested at most 20 deep"),
        (b"steps = " + b"9" * 5000, "a whole number has at most 18 digits; this has thousands"),
        (b"steps = 1 #" + b"x" * 2**20, "a configuration has at most 1048576 bytes, this has more; name a TOML file"),
        (b"\x00" * 100, "not valid TOML"),
        (b"\xff", "not valid UTF-8"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_short_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "c.toml").write_bytes(content)
    with pytest.raises(UsageError) as error:
        load_config(tmp_path / "c.toml", {})
    assert str(error.value).startswith(f"{tmp_path / 'c.toml'}: {message}")
    assert "\n" not in str(error.value)


def test_a_configuration_can_come_through_a_pipe_and_never_from_an_endless_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("steps = 7",))
    writer.start()
    assert load_config(tmp_path / "pipe", {}).steps == 7
    writer.join()
    with pytest.raises(UsageError, match="/dev/zero: a configuration has at most"):
        load_config(Path("/dev/zero"), {})


@pytest.mark.parametrize(
    "options", [{"sigma": 1e308}, {"sigma": 1001}, {"target_kl": math.inf}, {"sigma": math.nan}], ids=str
)
def test_noise_beyond_all_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"population.options: (sigma|target_kl): Input should be "):
        validate(NormNoiseOptions, options, "population.options")


def test_a_file_as_windows_writes_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes("steps = 3\r\n".encode("utf-8-sig"))
    assert load_config(path, {}).steps == 3
    path.write_bytes("steps = 3\r\n".encode("utf-16"))
    with pytest.raises(UsageError, match=r"c\.toml: not valid UTF-8 \(byte 0xff\); save the file as UTF-8$"):
        load_config(path, {})


def test_a_file_that_is_not_there_is_said_in_few_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nope\.toml: no such file$"):
        load_config(tmp_path / "nope.toml", {})


def test_names_of_other_trainers_lead_to_settings() -> None:
    known = {*flat(Config().model_dump())}
    for name, key in ELSEWHERE.items():
        parts = {part for setting in known for part in setting.split(".")}
        assert key in known
        assert name not in parts, "it is a setting, and no hint is asked for"
