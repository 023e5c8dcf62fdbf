"""What an engine yields is a rollout of a request that it was given, each once, or is refused by the engine's name."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from fakes import PROBLEMS, ScriptedBackend, tiny_policy

from ttrl_pop.config import SamplingConfig
from ttrl_pop.errors import UsageError
from ttrl_pop.sample.backend import Request
from ttrl_pop.sample.sample import sample
from ttrl_pop.types import Group, Mind, Rollout

MINDS = (Mind(3), Mind(4))


class Yielding(ScriptedBackend):
    """Yields what is made of two rollouts."""

    script = staticmethod(lambda index: f"{index}.")
    change: Callable[[list[Any]], Any] = staticmethod(lambda pairs: pairs)

    def rollouts(self, requests: Sequence[Request], weights: Any = "policy") -> Any:
        return self.change(list(super().rollouts(requests, weights)))


def groups(change: Callable[[list[Any]], Any]) -> list[Group]:
    backend = Yielding(tiny_policy(), SamplingConfig())
    backend.change = change
    return list(sample(backend, {"p0": (5, 6)}, PROBLEMS[:1], MINDS, 1, seed=0, step=1))


def first(**changes: Any) -> Callable[[list[Any]], Any]:
    """The first of the two rollouts is another in these fields."""

    def changed(pairs: list[tuple[int, Rollout]]) -> list[tuple[int, Rollout]]:
        index, rollout = pairs[0]
        made = object.__new__(Rollout)
        for field in dataclasses.fields(Rollout):
            object.__setattr__(made, field.name, changes.get(field.name, getattr(rollout, field.name)))
        return [(index, made), *pairs[1:]]

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (first(finish_reason="eos"), "rollout 0: finish_reason must be stop or length, got 'eos'"),
        (first(logprobs=(math.nan,) * 2), "rollout 0: log-probabilities must be finite, got nan"),
        (first(logprobs=(-1.0,)), "rollout 0 must have a log-probability for each token, got 1 for 2"),
        (first(logprobs=("x", -1.0)), "rollout 0: a log-probability must be a number, got a str"),
        (first(completion_ids=(1.5, 2)), "rollout 0: a token id must be a whole number, got a float"),
        (first(completion_ids=(5, 10**6)), r"rollout 0: token ids must be below \d+, got 5 to 1000000"),
        (first(mind=Mind(4)), "rollout 0 must have the mind and the prompt of request 0"),
        (first(prompt_ids=(5, 7)), "rollout 0 must have the mind and the prompt of request 0"),
        (first(text=b"7"), "rollout 0: text must be a str, got a bytes"),
        (first(policy_version=None), "rollout 0: policy_version must be a whole number, got None"),
        (lambda pairs: [pairs[0], pairs[0]], "each request has one rollout, got two for index 0"),
        (lambda pairs: [(2, pairs[0][1])], "an index must be one into the 2 requests, got 2"),
        (lambda pairs: [(-1, pairs[0][1])], "into the 2 requests, got -1"),
        (lambda pairs: [("0", pairs[0][1])], "an index must be a whole number, got a str"),
        (lambda pairs: [pairs[0][1]], "must yield pairs of an index and a rollout, got a Rollout"),
        (lambda pairs: None, "must yield pairs of an index and a rollout, got None"),
    ],
)
def test_what_is_no_rollout_of_a_request_is_refused(change: Callable[[list[Any]], Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^backend Yielding: .*{message}"):
        groups(change)


@pytest.mark.parametrize("kind", [np.array, torch.tensor, list])
def test_numbers_of_others_become_pythons_own(kind: Any) -> None:
    change = first(completion_ids=kind([5, 6]), logprobs=kind([-0.5, -0.25]), policy_version=np.int64(0))
    rollout = groups(change)[0].rollouts_G[0]
    assert (rollout.completion_ids, rollout.logprobs) == ((5, 6), (-0.5, -0.25))
    json.dumps(dataclasses.asdict(rollout))
