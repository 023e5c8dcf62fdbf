"""environment.json: what is kept of machine and versions, and what is said where they differ."""

import json
from importlib import metadata

import torch

from ttrl_pop.run.environment import differences, environment


def test_it_names_what_numbers_depend_on() -> None:
    found = json.loads(json.dumps(environment("hf")))
    assert found["packages"]["torch"] == metadata.version("torch")
    # Rewards under `novelty` are made with it.
    assert found["packages"]["scikit-learn"] == metadata.version("scikit-learn")
    assert found["threads"] == torch.get_num_threads()
    assert all(found[name] for name in ("cpu", "os", "python", "argv"))
    assert len(found["gpus"]) == torch.cuda.device_count()
    assert differences(found, environment("hf")) is None


def test_each_difference_is_named_with_both_sides_but_not_the_command() -> None:
    before = {"threads": 2, "gpus": [], "packages": {"torch": "2.9", "peft": "1"}, "argv": ["a"]}
    now = {"threads": 4, "gpus": ["H100", "H100"], "packages": {"torch": "2.13", "vllm": "0.32"}, "argv": ["b"]}
    assert differences(before, now) == (
        "threads 4 (was 2), gpus H100, H100 (was none), torch 2.13 (was 2.9), vllm 0.32 (was not there), "
        "peft gone (was 1)"
    )
    assert differences(before, {**before, "argv": ["b"]}) is None


def test_what_a_stranger_wrote_is_one_short_line() -> None:
    said = differences({"cpu": "\x1b[2J\n" * 1000, "packages": [1], "x": {}}, {"cpu": "a", "packages": {}})
    assert said is not None
    assert said.isprintable()
    assert len(said) < 200
