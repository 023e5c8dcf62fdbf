"""What is counted: rollouts and problems of each part, and tokens that pass the layers. That as many are written is
tested in tests/cli/test_plan.py."""

from typing import Any

import pytest
import torch

from ttrl_pop.config import Config
from ttrl_pop.config_file import load_config
from ttrl_pop.fit.base_rollouts import PROBLEMS as MOST_CALIBRATED
from ttrl_pop.packing.pack import Tree, pack
from ttrl_pop.plan.work import packed_prompts, survey, training
from ttrl_pop.run.survey import CHUNK
from ttrl_pop.run.workload import workload
from ttrl_pop.types import Mind


def parts(problems: int, **overrides: Any) -> dict[str, Any]:
    config = load_config(None, {key.replace("__", "."): value for key, value in overrides.items()})
    return {part.name: part for part in training(config, problems, 16, 0, CHUNK)}


def test_the_last_survey_of_many_problems_is_most_of_the_work() -> None:
    found = parts(500)
    assert found["answers"].rollouts == 500 * 16
    assert found["steps"].rollouts == 20 * 16 * 16
    assert found["answers"].rollouts / sum(part.rollouts for part in found.values()) == pytest.approx(0.61, abs=0.005)


def test_problems_that_many_steps_visit_are_counted_once() -> None:
    assert parts(10, steps=5, problems_per_step=4)["steps"].problems == 10
    assert parts(10, steps=2, problems_per_step=4)["steps"].problems == 8
    assert parts(10, steps=3, problems_per_step=4)["steps"].problems == 10
    assert parts(3, steps=1, problems_per_step=4)["steps"].visits == 3


def test_problems_held_out_are_asked_before_some_steps_and_at_the_end() -> None:
    config = load_config(None, {"steps": 11, "eval_every": 5})
    (part,) = [part for part in training(config, 10, 16, 0, CHUNK, held=3) if part.name == "problems held out"]
    # Before steps 1, 6 and 11, and after the last one.
    assert (part.visits, part.rollouts, part.batch) == (4 * 3, 4 * 3 * 16, 3)
    assert workload(config, 10, 0, 0, 0, held=3).survey == part.rollouts
    assert workload(config, 10, 5, 0, 0, held=3).survey == 3 * 3 * 16
    assert "problems held out" not in parts(10)


def test_a_calibration_reads_no_more_problems_than_it_does() -> None:
    (part, *_) = training(Config(), 100, 16, min(100, MOST_CALIBRATED), CHUNK)
    assert (part.name, part.rollouts) == ("calibration", MOST_CALIBRATED)
    assert survey("answers", Config(), 100, 16, CHUNK).batch == CHUNK


@pytest.mark.parametrize("alike", [0, 9])
def test_tokens_that_pass_the_layers_are_those_of_the_row(alike: int) -> None:
    prompts = [(*range(alike), 100 + i, *range(20 + i % 3)) for i in range(12)]
    packed = pack([Tree(prompt, Mind(3)) for prompt in prompts], torch.device("cpu"))
    found = packed_prompts(prompts, 10**6)
    assert found.packed == len(packed.ids_N) / len(prompts)
    assert found.mean == sum(map(len, prompts)) / len(prompts)
    assert found.longest == max(map(len, prompts))
    assert (found.packed < found.mean) is bool(alike)
    assert packed_prompts(prompts, 1).packed == found.mean, "in forwards of their own nothing is shared"
