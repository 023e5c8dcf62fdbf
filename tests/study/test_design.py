"""A study's file: arms are sets of settings above all others, and what is wrong is said with its place."""

from dataclasses import replace
from pathlib import Path

import pytest
from fakes import ROOT

from ttrl_pop.config import ProblemsConfig
from ttrl_pop.config_file import parse_layer, typed_layer, validate
from ttrl_pop.errors import UsageError
from ttrl_pop.population.options import NormNoiseOptions
from ttrl_pop.read.problems import read_problems
from ttrl_pop.study.design import NAMES, Study, designed, own_problems, parse_study, read_study
from ttrl_pop.vote.rewards.base import needs_gold

TEN_LINES = """
seeds = 2
[settings]
steps = 4
[arms.majority]
[arms.coin]
vote.reward = "coin"
[arms.base]
steps = 0
[equal_tokens]
base = "majority"
"""


def study_of(text: str, config: str = "", **typed: object) -> Study:
    keys = {key.replace("__", "."): value for key, value in typed.items()}
    return designed(parse_study(text, "mine"), [parse_layer(config, "c.toml")], typed_layer(keys, "command line"))


def test_an_arm_is_a_set_of_settings() -> None:
    found = study_of(TEN_LINES)
    assert (found.name, found.seeds, [*found.arms], found.first) == (
        "mine",
        2,
        ["majority", "coin", "base"],
        "majority",
    )
    rewards = {arm: config.vote.reward for arm, config in found.arms.items()}
    assert rewards == {"majority": "majority", "coin": "coin", "base": "majority"}
    assert [config.steps for config in found.arms.values()] == [4, 4, 0]


def test_files_lie_below_a_study_and_the_command_line_above_it_and_arms_above_all() -> None:
    found = study_of(TEN_LINES, "steps = 9\nseed = 3\n", steps=7, vote__reward="gated")
    assert [config.steps for config in found.arms.values()] == [7, 7, 0]
    assert {config.seed for config in found.arms.values()} == {3}
    assert [config.vote.reward for config in found.arms.values()] == ["gated", "coin", "gated"]
    assert [c.steps for c in study_of(TEN_LINES, "steps = 9").arms.values()] == [4, 4, 0]


def test_options_of_another_population_do_not_reach_an_arm_without_it() -> None:
    text = '[arms.a]\n[arms.b]\npopulation.name = "none"\n'
    found = study_of(text, "[population.options]\nsigma = 0.2\n", population__options__target_kl=0.1)
    assert found.arms["a"].population.options == {"sigma": 0.2, "target_kl": 0.1}
    assert found.arms["b"].population.options == {}


def test_what_is_written_is_the_same_study_without_other_settings() -> None:
    found = study_of(TEN_LINES, "[learn]\nlr = 1e-3\n", population__minds=5)
    assert designed(parse_study(found.dumps(), "again")) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[arms.a]\nvote.rewrd = 1", "study mine, arm a: unknown key 'vote.rewrd'; did you mean 'vote.reward'?"),
        ("[settings]\nsteps_ = 1\n[arms.a]", "study mine, settings: unknown key 'steps_'; did you mean 'steps'?"),
        ("[arms.a]\n[arm.b]", "study mine: unknown key 'arm'; did you mean 'arms'?"),
        ("seeds = 2", "study mine: arms: must be given"),
        ("[arms]", "study mine: arms"),
        ("seeds = 0\n[arms.a]", "study mine: seeds"),
        ('[arms."../a"]', "'../a' has not"),
        ('[arms.a]\nsteps=0\n[arms.b]\n[equal_tokens]\na = "b"', "'b' an arm that stands before it"),
        ('[arms.b]\n[arms.a]\n[equal_tokens]\na = "b"', "study mine, arm a: only an arm without training"),
        ("[arms.a]\nanswers = false", "study mine, arm a: arms are compared by their final answers"),
        ("[arms.a]\nguard.stop_on_collapse = true", "study mine, arm a: a collapse is a result"),
        ("[arms.a]\n[arms.b]\nproblems.limit = 3", "all arms are asked the same"),
        ('[arms.a]\n[arms.b]\n[curves]\nx = ["a", "c"]', "curves: 'x' must be a list of arms; 'c' is none"),
        ('[arms.a]\n[arms.b]\n[curves]\nx = ["a", "a"]', "curves: 'x' needs two arms or more"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        study_of(text)
    assert message in str(error.value)


def test_a_study_that_is_not_there_is_told_of_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"one of controls, minds, zero-shot, noise, diversity or a TOML file, got 'control'"
    ):
        read_study("control")
    with pytest.raises(UsageError, match="no such file"):
        read_study(str(tmp_path / "none.toml"))


def test_without_an_arm_those_with_its_tokens_are_gone_too() -> None:
    assert [*study_of(TEN_LINES).without(["coin"]).arms] == ["majority", "base"]
    assert [*study_of(TEN_LINES).without(["majority"]).arms] == ["coin"]
    with pytest.raises(UsageError, match="no arm is left"):
        study_of("[arms.a]").without(["a"])


@pytest.mark.parametrize("name", NAMES)
def test_studies_of_the_program_spend_as_many_rollouts_in_each_arm(name: str) -> None:
    found = designed(read_study(name))
    sizes = {config.group_size for arm, config in found.arms.items() if arm not in found.equal_tokens}
    steps = {config.steps for arm, config in found.arms.items() if arm not in found.equal_tokens}
    assert len(sizes) == len(steps) == 1
    assert found.seeds >= 3
    assert len(found.arms) > 2


def test_controls_hold_all_that_the_vote_is_to_be_told_from() -> None:
    found = designed(read_study("controls"))
    rewards = [config.vote.reward for config in found.arms.values()]
    assert rewards == ["majority", "coin", "shuffled", "format", "gold", "majority"]
    assert [arm for arm, config in found.arms.items() if needs_gold(config.vote.reward)] == ["gold"]
    assert found.equal_tokens == {"base": "majority"}


def test_curves_are_kept_in_the_folder_and_lose_the_arms_that_are_left_out() -> None:
    text = 'seeds = 1\n[arms.a]\n[arms.b]\n[arms.c]\n[curves]\nx = ["a", "b"]\ny = ["a", "b", "c"]\n'
    found = study_of(text)
    assert found.curves == {"x": ("a", "b"), "y": ("a", "b", "c")}
    assert designed(parse_study(found.dumps(), "again")) == replace(found, name="mine")
    assert found.without(["b"]).curves == {"y": ("a", "c")}


def test_problems_of_a_study_stand_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('problems = "asked.jsonl"\n[arms.a]\n')
    assert own_problems(str(path), read_study(str(path))) == str(tmp_path / "asked.jsonl")
    assert own_problems("minds", read_study("minds")) is None
    own = own_problems("diversity", read_study("diversity"))
    assert own is not None
    assert len(read_problems(own, ProblemsConfig()).problems) == 30
    assert Path(own).samefile(ROOT / "examples" / "open-ended.jsonl")


def test_arms_of_diversity_begin_at_one_start_and_reach_every_curve() -> None:
    found = designed(read_study("diversity"))
    assert {own[0] for own in found.curves.values()} == {found.first} == {"start"}
    assert {arm for own in found.curves.values() for arm in own} == {*found.arms}
    limits = {(config.group_size, config.sampling.max_new_tokens) for config in found.arms.values()}
    assert limits == {(8, 32)}


def test_noise_differs_by_one_thing_in_each_arm() -> None:
    found = designed(read_study("noise"))
    options = {arm: config.population.options for arm, config in found.arms.items()}
    assert {arm: options[arm] for arm in ("input", "post-attention", "last-third", "decay")} == {
        **{sites: {"sites": sites} for sites in ("input", "post-attention", "last-third")},
        "decay": {"decay": 0.8},
    }
    for arm, config in found.arms.items():
        if config.population.name == "norm-noise":
            validate(NormNoiseOptions, options[arm], arm)
