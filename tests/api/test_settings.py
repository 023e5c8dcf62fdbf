"""Settings as Python has them become those of the command, or are refused in a line."""

import inspect
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from ttrl_pop.api.settings import given, source_of
from ttrl_pop.errors import UsageError


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ({"track": "tensorboard"}, {"track": ("tensorboard",)}),
        ({"track": ["tensorboard", "wandb"]}, {"track": ("tensorboard", "wandb")}),
        ({"model": Path("a/b"), "holdout": Path("c.jsonl")}, {"model": "a/b", "holdout": "c.jsonl"}),
        ({"holdout": 0.2, "raw": True}, {"holdout": 0.2, "problems.form": "raw"}),
        ({"population": {"options": {"fitted": Path("f")}}}, {"population.options.fitted": "f"}),
        ({"population": OrderedDict(minds=3)}, {"population.minds": 3}),
        ({"learn.lr": 1e-3, "raw": None}, {"learn.lr": 1e-3, "problems.form": None}),
    ],
)
def test_what_python_has_for_a_value_is_the_value(settings: dict[str, Any], values: dict[str, Any]) -> None:
    assert given(settings).values() == values


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"raw": "yes"}, "raw must be True or False, got 'yes'"),
        ({"mind": 3}, "unknown key 'mind'; did you mean 'minds'"),
        ({"learning_rate": 3}, "unknown key 'learning_rate'; did you mean 'lr'"),
        ({"stepz": 3}, "unknown key 'stepz'; did you mean 'steps'"),
    ],
)
def test_what_sets_nothing_is_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        given(settings)


def test_rows_that_are_none_are_said() -> None:
    with pytest.raises(UsageError, match=r"rows must come in a list, got one dict; pass \[row\]"):
        inspect.unwrap(source_of)({"id": "a", "response": "1"})
    with pytest.raises(UsageError, match="a source must be a file's name or rows, got something of type int"):
        inspect.unwrap(source_of)(5)
