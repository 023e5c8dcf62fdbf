"""Bytes by part, on numbers that can be added up by hand."""

import pytest

from ttrl_pop.config import Config
from ttrl_pop.config_file import load_config
from ttrl_pop.model.size import PolicySize
from ttrl_pop.plan.footprint import ROLLOUT_TOKEN, disk, memory
from ttrl_pop.plan.work import Forwards

SIZE = PolicySize(layers=10, hidden=8, vocabulary=1000, weights=1_000, merged=200, laid_out=300, trained=50)
FORWARDS = Forwards(read=100, learn=1000, logits=128)


def peak(config: Config, learns: bool = True) -> dict[str, int]:
    found = memory(config, SIZE, FORWARDS, 7, slots=3, longest=5, cache_bytes=11, kept_bytes=100.0, learns=learns)
    return dict(found)


def test_memory_by_part() -> None:
    config = Config()
    logits = 128 * 1000 * 4 * 4
    assert peak(config) == {
        "program": 7,
        "weights": 1_000,
        "merged weights": 200,
        "laid out weights": 300,
        "adapter, population, optimizer": 4 * 50,
        "keys and values": 3 * 5 * 11,
        "activations": 1000 * (100 + 2 * 10) + logits,
    }
    survey = peak(config, learns=False)
    assert survey["adapter, population, optimizer"] == 50
    assert survey["activations"] == 100 * 2 * 10 + logits
    averaged = load_config(None, {"vote.labels": "average"})
    assert peak(averaged)["adapter, population, optimizer"] == 5 * 50


@pytest.mark.parametrize(
    ("steps", "every", "keep", "saved"), [(20, 1, 2, 3), (2, 1, 2, 2), (20, 15, 2, 2), (20, 20, 2, 1), (20, 1, 5, 6)]
)
def test_as_many_checkpoints_are_counted_as_are_kept(steps: int, every: int, keep: int, saved: int) -> None:
    config = load_config(None, {"steps": steps, "checkpoint.every": every, "checkpoint.keep": keep})
    found = disk(config, SIZE, problems=6, rollouts=10)
    assert found["checkpoints"] == saved * 3 * SIZE.trained
    assert found["rollouts"] == 10 * 512 * ROLLOUT_TOKEN
    assert disk(load_config(None, {"answers": False}), SIZE, 6, 10)["answers"] == 0
