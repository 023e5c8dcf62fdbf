"""What an engine yields, held to what a backend promises before anything is made of it."""

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, get_args

from ttrl_pop.errors import UsageError
from ttrl_pop.population.base import MEAN
from ttrl_pop.sample.backend import Backend, Request
from ttrl_pop.types import FinishReason, Rollout

REASONS = get_args(FinishReason)


def checked(backend: Backend, requests: Sequence[Request], yielded: Any) -> Iterator[tuple[int, Rollout]]:
    """The pairs that an engine yields for `requests`, their numbers made Python's own.

    Raises:
        UsageError: one is no rollout of a request, or is that of a request which has one already.
    """
    name = f"backend {type(backend).__name__}"
    vocabulary = len(backend.policy.network.get_input_embeddings().weight)
    if not isinstance(yielded, Iterable):
        raise UsageError(f"{name}: rollouts must yield pairs of an index and a rollout, got {_kind(yielded)}")
    seen: set[int] = set()
    for pair in yielded:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], Rollout)):
            raise UsageError(f"{name}: rollouts must yield pairs of an index and a rollout, got {_kind(pair)}")
        index = _whole(f"{name}: an index", pair[0])
        if not 0 <= index < len(requests):
            raise UsageError(f"{name}: an index must be one into the {len(requests)} requests, got {index}")
        if index in seen:
            raise UsageError(f"{name}: each request has one rollout, got two for index {index}")
        seen.add(index)
        yield index, _rollout(f"{name}: rollout {index}", requests[index], pair[1], vocabulary)


def _rollout(what: str, request: Request, rollout: Rollout, vocabulary: int) -> Rollout:
    ids, logprobs, version = rollout.completion_ids, rollout.logprobs, rollout.policy_version
    # Of our own engines nothing is converted: a look at the types is all that a token costs.
    if not (
        type(ids) is type(logprobs) is tuple
        and {type(version), *map(type, ids)} == {int}
        and {*map(type, logprobs)} <= {float}
    ):
        ids = tuple(_whole(f"{what}: a token id", number) for number in ids)
        logprobs = tuple(_number(f"{what}: a log-probability", number) for number in logprobs)
        version = _whole(f"{what}: policy_version", version)
        rollout = replace(rollout, completion_ids=ids, logprobs=logprobs, policy_version=version)
    if rollout.mind != (request.mind or MEAN) or rollout.prompt_ids != request.prompt_ids:
        raise UsageError(f"{what} must have the mind and the prompt of request {what.rpartition(' ')[2]}, got others")
    if rollout.finish_reason not in REASONS:
        raise UsageError(f"{what}: finish_reason must be {' or '.join(REASONS)}, got {rollout.finish_reason!r}")
    if not isinstance(rollout.text, str):
        raise UsageError(f"{what}: text must be a str, got {_kind(rollout.text)}")
    if len(ids) != len(logprobs):
        raise UsageError(f"{what} must have a log-probability for each token, got {len(logprobs)} for {len(ids)}")
    if not math.isfinite(sum(logprobs)):
        raise UsageError(f"{what}: log-probabilities must be finite, got {sum(logprobs)} among them")
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
        raise UsageError(f"{what}: token ids must be below {vocabulary}, got {min(ids)} to {max(ids)}")
    return rollout


def _whole(what: str, number: Any) -> int:
    try:
        return int(operator.index(number))
    except TypeError:
        raise UsageError(f"{what} must be a whole number, got {_kind(number)}") from None


def _number(what: str, number: Any) -> float:
    try:
        return float(number)
    except (TypeError, ValueError):
        raise UsageError(f"{what} must be a number, got {_kind(number)}") from None


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
