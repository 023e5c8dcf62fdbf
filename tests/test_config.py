"""Configuration: precedence, unknown keys, round trip."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttrl_pop.config import Config
from ttrl_pop.config_file import dump_config, load_config, parse_assignment, validate
from ttrl_pop.errors import UsageError
from ttrl_pop.population.norm_noise import NormNoiseOptions


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
        ("[sampling]\nminds = 3", "unknown key 'sampling.minds'; did you mean 'population.minds'?"),
        ("steps = 0", "steps: Input should be greater than or equal to 1, got 0"),
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


def test_options_of_a_plug_in_are_checked_too() -> None:
    with pytest.raises(UsageError, match=r"population.options: unknown key 'sgima'; did you mean 'sigma'\?"):
        validate(NormNoiseOptions, {"sgima": 0.1}, "population.options")
    assert validate(NormNoiseOptions, {"sigma": 0.1}, "population.options").sigma == 0.1
    assert validate(NormNoiseOptions, {"sigma": "auto"}, "population.options").sigma == "auto"


@given(
    st.integers(1, 10**6),
    st.floats(0, 1e3, allow_nan=False),
    st.lists(st.text(max_size=5).filter(lambda s: "\x00" not in s), max_size=3),
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
