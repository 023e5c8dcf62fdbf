"""Find sigma: the largest whose minds stay near the base model on the user's own problems.

Near means: mean KL(base ‖ mind) within `target_kl` nats per token *and* a share of changed most-likely tokens within
`target_flips`, both on completions that the base model samples itself. The KL grows as sigma² while it is small, so a
few evaluations suffice. One absolute sigma does not travel between models or problem sets (docs/METHOD.md has figures).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from ttrl_pop.errors import UsageError
from ttrl_pop.model.logprobs import logit_rows
from ttrl_pop.model.policy import Policy
from ttrl_pop.packing.pack import Branch, Tree, pack
from ttrl_pop.population.base import Population
from ttrl_pop.types import Mind, Rollout

MINDS = 4
"""Minds that read what the base model says."""

FIRST_GUESS = 0.005
"""Sigma that is tried first."""

CLOSE = 0.85
"""A sigma within its targets and at least this near to the tighter one is good enough."""

EVALUATIONS = 6
"""Sigmas that are tried at most once one within the targets is known; until then the search goes on, faster, down to
nothing."""

MOST_EVALUATIONS = 20
"""Sigmas that are tried at most."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A sigma, and how far its minds are from the base model."""

    sigma: float
    kl: float
    """Mean KL(base ‖ mind), nats per token."""
    flips: float
    """Share of tokens whose most likely next token differs."""
    evaluations: int
    """Sigmas that had been tried when this one was."""


def calibrate(
    policy: Policy,
    rollouts: Sequence[Rollout],
    minds: Sequence[Mind],
    token_budget: int,
    trying: Callable[[float], object] = lambda sigma: None,
) -> Calibration:
    """Set the population's scale to the largest sigma found that keeps `minds` near the base model.

    Args:
        rollouts: what the base model wrote.
        token_budget: most tokens of a forward.
        trying: is told each sigma before it is tried.

    Raises:
        UsageError: no sigma that was tried meets the targets.
    """
    readings = read_by_base(policy, rollouts, token_budget)
    return search(policy.population, lambda: distance(policy, readings, minds), trying)


def search(
    population: Population,
    measure: Callable[[], tuple[float, float]],
    trying: Callable[[float], object] = lambda sigma: None,
) -> Calibration:
    """Set the population's scale to the largest sigma found at which `measure` is within the targets.

    Args:
        measure: mean KL(base ‖ mind) in nats per token and share of flips, at the population's present scale.
        trying: is told each sigma as it is tried.

    Raises:
        UsageError: no sigma that was tried meets the targets.
    """
    options = population.options
    low = high = None
    sigma = FIRST_GUESS
    best: Calibration | None = None
    for evaluation in range(1, MOST_EVALUATIONS + 1):
        if best is not None and evaluation > EVALUATIONS:
            break
        trying(sigma)
        population.set_scale(sigma)
        kl, flips = measure()
        excess = max(kl / options.target_kl, flips / options.target_flips)
        if excess <= 1:
            low, best = sigma, Calibration(sigma, kl, flips, evaluation)
            if excess >= CLOSE:
                break
        else:
            high = sigma
        # The square law, kept inside what is already known to be too small or too large.
        guess = sigma * min(4.0, max(0.25, (0.95 / excess) ** 0.5 if excess > 0 else 4.0))
        if low is None and evaluation >= 3:
            # Few tokens, or near ties among them: the share of changes falls in steps, not by the law.
            guess = min(guess, sigma / 2)
        if low is not None and guess <= low:
            guess = (low * high) ** 0.5 if high is not None else low * 1.5
        if high is not None and guess >= high:
            guess = (low * high) ** 0.5 if low is not None else high / 2
        sigma = guess
    if best is None:
        raise UsageError(
            f"no sigma down to {high:.2g} keeps minds within target_kl {options.target_kl} and target_flips "
            f"{options.target_flips} of the base model; raise them, or give population.options.sigma a number"
        )
    population.set_scale(best.sigma)
    return best


@dataclass(frozen=True, slots=True)
class Reading:
    """Rollouts that go into one forward, and what the base model sees in them."""

    rollouts: tuple[Rollout, ...]
    base_ND: Float[Tensor, "N D"]
    """Hidden states before every completion token."""


@torch.no_grad()
def read_by_base(policy: Policy, rollouts: Sequence[Rollout], token_budget: int) -> list[Reading]:
    """Read the rollouts with the base model, as many at a time as `token_budget` tokens allow."""
    longest = max(len(r.prompt_ids) + len(r.completion_ids) for r in rollouts)
    rows = max(1, token_budget // longest)
    parts = [tuple(rollouts[start : start + rows]) for start in range(0, len(rollouts), rows)]
    with policy.as_base():
        return [Reading(part, _hidden(policy, part, None)) for part in parts]


@torch.no_grad()
def distance(policy: Policy, readings: Sequence[Reading], minds: Sequence[Mind]) -> tuple[float, float]:
    """Mean KL(base ‖ mind) in nats per token, and share of changed most-likely tokens, over completions × minds."""
    held = logit_rows(policy.network)
    kl: list[float] = []
    flips: list[float] = []
    with policy.as_base():
        for reading in readings:
            own_MND = torch.stack([_hidden(policy, reading.rollouts, mind) for mind in minds])
            for base, own in zip(torch.split(reading.base_ND, held), torch.split(own_MND, held, dim=1), strict=True):
                # As wide as the vocabulary, and the same for all minds.
                base_logp = _log_softmax(policy.logits(base))
                base_p, likeliest = base_logp.exp(), base_logp.argmax(-1)
                for states in own:
                    own_logp = _log_softmax(policy.logits(states))
                    kl.append(float((base_p * (base_logp - own_logp)).sum()))
                    flips.append(float((likeliest != own_logp.argmax(-1)).sum()))
    count = len(minds) * sum(len(reading.base_ND) for reading in readings)
    return math.fsum(kl) / count, math.fsum(flips) / count


def _hidden(policy: Policy, rollouts: Sequence[Rollout], mind: Mind | None) -> Float[Tensor, "N D"]:
    """Hidden states before every completion token, as `mind` reads prompts and completions."""
    reader = None if mind is None else policy.population.reader(mind)
    packed = pack([Tree(r.prompt_ids, reader, (Branch(r.completion_ids[:-1], mind),)) for r in rollouts], policy.device)
    wanted = [*chain(*(packed.sources(tree, 0) for tree in range(len(rollouts))))]
    return policy.hidden(packed)[torch.tensor(wanted, device=policy.device)]


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
