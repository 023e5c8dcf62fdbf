"""What is asked of a population before it trains: minds that differ and reach the model, and figures to write down."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch

from ttrl_pop.errors import UsageError
from ttrl_pop.model.policy import Policy
from ttrl_pop.packing.pack import Branch, Tree, pack
from ttrl_pop.population.base import MEAN, Lack, Population
from ttrl_pop.randomness import OUTSIDE_TRAINING
from ttrl_pop.text import shown
from ttrl_pop.types import Mind

PREFIX = "population/"
"""How the keys of its figures begin."""

SHOWN = 80
"""Characters of what came that an error shows."""

LONGEST = 8
"""Tokens of a prompt that are read."""


def check_reach(policy: Policy, mind: Mind, prompt_ids: tuple[int, ...]) -> None:
    """Refuse a population whose minds are in no output of the model, as where its hooks never run.

    A population without trained parameters is not asked, and one without spread passes: its gradient is zero, but it is
    there.

    Raises:
        UsageError: hidden states as `mind` reads the prompt depend on no parameter of the population.
    """
    parameters = list(policy.population_parameters().values())
    if not parameters:
        return
    ids = prompt_ids[-LONGEST:]
    packed = pack([Tree(ids, policy.population.reader(mind), (Branch(ids, mind),))], policy.device)
    with torch.enable_grad():
        total = policy.hidden(packed).sum()
        reached = total.requires_grad and any(
            gradient is not None for gradient in torch.autograd.grad(total, parameters, allow_unused=True)
        )
    if not reached:
        raise UsageError(
            f"population {type(policy.population).__name__} does not reach the model: no output depends on its "
            "parameters. Hook linear layers in `settle` (docs/ARCHITECTURE.md)"
        )


def check_lack(population: Population) -> None:
    """Refuse a population that lacks what nobody can give it.

    Raises:
        UsageError: `lacks` is another word than there are, or it lacks a scale that cannot be set or looked for.
    """
    name, lacks = f"population {type(population).__name__}", population.lacks
    if lacks not in (None, *get_args(Lack)):
        raise UsageError(f"{name}: lacks must be None, {' or '.join(map(repr, get_args(Lack)))}, got {lacks!r}")
    if lacks == "scale":
        if type(population).set_scale is Population.set_scale:
            raise UsageError(f"{name} lacks its scale, so it must define set_scale")
        if missing := [key for key in ("target_kl", "target_flips") if not hasattr(population.options, key)]:
            raise UsageError(f"{name} lacks its scale, so its Options must have {' and '.join(missing)} to find it by")


def check_spawn(population: Population, seed: int, count: int) -> None:
    """Refuse a population whose minds cannot be told apart, or are drawn anew each time.

    Args:
        count: minds of a step.

    Raises:
        UsageError: `spawn` returns something else than so many different minds, none of them the mean, or others when
            it is asked again.
    """
    name = f"population {type(population).__name__}"
    minds: Any = population.spawn(seed, OUTSIDE_TRAINING, count)
    if not isinstance(minds, Sequence) or not all(isinstance(mind, Mind) for mind in minds):
        raise UsageError(f"{name}: spawn must return a tuple of ttrl_pop.Mind, got {shown(repr(minds), SHOWN)}")
    if len(minds) != count or len(set(minds)) != count or MEAN in minds:
        raise UsageError(
            f"{name}: spawn must return {count} different minds, none of them MEAN (seed 0), got {len(minds)}, "
            f"{len(set(minds))} of them different{', one of them MEAN' if MEAN in minds else ''}"
        )
    if tuple(population.spawn(seed, OUTSIDE_TRAINING, count)) != tuple(minds):
        raise UsageError(
            f"{name}: spawn must be a function of its arguments, got other minds for the same; draw by "
            "ttrl_pop.randomness"
        )


def check_metrics(population: Population) -> None:
    """Refuse figures that metrics.jsonl cannot hold, or that could be taken for those of others.

    Raises:
        UsageError: a metric is no plain finite number, or has the key of something else.
    """
    name = f"population {type(population).__name__}"
    metrics: Any = population.metrics()
    if not isinstance(metrics, Mapping):
        raise UsageError(f"{name}: metrics must return a dict, got a {type(metrics).__name__}")
    for key, value in metrics.items():
        if not isinstance(key, str) or not key.startswith(PREFIX):
            raise UsageError(f"{name}: keys of metrics must begin with {PREFIX}, got {key!r}")
        if value is not None and not isinstance(value, int | float):
            raise UsageError(
                f"{name}: metrics must be plain numbers or None, got a {type(value).__name__} for {key!r}; "
                "return float(...)"
            )
        if value is not None and not math.isfinite(value):
            raise UsageError(f"{name}: metrics must be finite, got {value} for {key!r}; return None where none is")
