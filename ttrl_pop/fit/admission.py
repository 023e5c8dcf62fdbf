"""What is asked of a population before it trains: that it reaches the model, and that its figures can be written."""

import torch

from ttrl_pop.errors import UsageError
from ttrl_pop.model.policy import Policy
from ttrl_pop.packing.pack import Branch, Tree, pack
from ttrl_pop.population.base import Population
from ttrl_pop.types import Mind

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


def check_metrics(population: Population) -> None:
    """Refuse figures that metrics.jsonl cannot hold.

    Raises:
        UsageError: a metric is no plain number.
    """
    for key, value in population.metrics().items():
        if value is not None and not isinstance(value, int | float):
            raise UsageError(
                f"population {type(population).__name__}: metrics must be plain numbers or None, got a "
                f"{type(value).__name__} for {key!r}; return float(...)"
            )
