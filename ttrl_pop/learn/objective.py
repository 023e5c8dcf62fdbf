"""The loss of one micro-batch: the formulas of `ttrl_pop.learn.grpo` on log-probabilities under the minds that wrote.

`replay` reads each rollout through the very mind that wrote it, so its log-probabilities equal the sampler's and mu and
sigma get the reparameterised gradient. `mean` and `mean-tis` switch the noise off.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ttrl_pop.config import LearnConfig
from ttrl_pop.kernels.memory import transfer
from ttrl_pop.learn import grpo
from ttrl_pop.learn.micro_batches import Sample, pad
from ttrl_pop.model.logprobs import token_logprobs
from ttrl_pop.model.policy import Policy
from ttrl_pop.population.base import MEAN
from ttrl_pop.types import Mind, Rollout


@dataclass(slots=True)
class Sums:
    """Totals over micro-batches."""

    loss: float = 0.0
    kl: float = 0.0
    tokens: int = 0
    clipped: int = 0
    gap: float = 0.0
    gap_tokens: int = 0
    """Tokens of the first pass, the one that is compared with the sampler."""
    gap_max: float = 0.0
    norms: list[float] = field(default_factory=list)
    population_norms: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def add(self, other: "Sums") -> None:
        """Add the totals of a micro-batch, or of an update."""
        self.loss += other.loss
        self.kl += other.kl
        self.tokens += other.tokens
        self.clipped += other.clipped
        self.gap += other.gap
        self.gap_tokens += other.gap_tokens
        self.gap_max = max(self.gap_max, other.gap_max)
        self.norms += other.norms
        self.population_norms += other.population_norms
        self.losses += other.losses

    def joined(self, other: "Sums") -> "Sums":
        """These totals and those of other shards."""
        found = Sums()
        found.add(self)
        found.add(other)
        return found


def mind_of(sample: Sample, options: LearnConfig) -> Mind:
    """Through which mind a rollout is read: its own under `replay`, else the mean mind."""
    return sample.rollout.mind if options.noise == "replay" else MEAN


@torch.no_grad()
def base_logprobs(policy: Policy, batch: Sequence[Sample], temperature: float) -> list[Tensor]:
    """Log-probabilities [T] of each rollout under the base model: no adapter, no mind."""
    if not batch:
        return []
    rollouts = [sample.rollout for sample in batch]
    with policy.as_base():
        base_BT, _ = token_logprobs(policy, rollouts, None, temperature)
    return _apart(base_BT, rollouts)


def objective(
    policy: Policy, batch: Sequence[Sample], options: LearnConfig, temperature: float, stay: ExitStack
) -> tuple[Tensor, Sums, list[Tensor]]:
    """The loss of one micro-batch, its totals, and the old log-probabilities [T] of each sample: those of the first
    pass, detached, which are given back as they are in later ones.

    Args:
        stay: takes the minds over; close it after the backward pass.
    """
    rollouts = [sample.rollout for sample in batch]
    minds = [mind_of(sample, options) for sample in batch]
    new_BT, mask_BT = token_logprobs(policy, rollouts, minds, temperature, stay)
    first = batch[0].old is None
    if first:
        old_BT, olds = new_BT.detach(), _apart(new_BT.detach(), rollouts)
    else:
        olds = [sample.old for sample in batch if sample.old is not None]
        old_BT = pad(olds, new_BT)
    sampler_BT = _written(rollouts, new_BT)
    weights_B = new_BT.new_tensor([sample.weight for sample in batch])
    advantages_B = new_BT.new_tensor([sample.advantage for sample in batch])

    ratios_BT = grpo.log_ratios(new_BT, old_BT, mask_BT, options.loss)
    loss_BT, clipped_BT = grpo.policy_loss(ratios_BT, advantages_B, options.clip_low, options.clip_high)
    if options.noise == "mean-tis" or (options.tis and options.noise == "replay"):
        loss_BT = loss_BT * grpo.truncated_importance(old_BT, sampler_BT, options.tis_cap)
    kl_BT = None
    if options.kl:
        kl_BT = grpo.k3(new_BT, pad([sample.base for sample in batch if sample.base is not None], new_BT))
        loss_BT = loss_BT + options.kl * kl_BT
    loss = (loss_BT * weights_B[:, None]).masked_fill(~mask_BT, 0.0).sum()
    found = Sums(
        loss=float(loss.detach()),
        kl=0.0 if kl_BT is None else float(kl_BT.detach()[mask_BT].sum()),
        tokens=int(mask_BT.sum()),
        clipped=int((clipped_BT & mask_BT).sum()),
    )
    if first:
        gaps = (old_BT - sampler_BT).abs()[mask_BT]
        found.gap, found.gap_tokens, found.gap_max = float(gaps.sum()), gaps.numel(), float(gaps.max())
    return loss, found, olds


def _apart(values_BT: Tensor, rollouts: Sequence[Rollout]) -> list[Tensor]:
    """[T] of each rollout. Its length is known here: a mask would have to be asked for, which stops a GPU."""
    return [row[: len(rollout.completion_ids)] for row, rollout in zip(values_BT, rollouts, strict=True)]


def _written(rollouts: Sequence[Rollout], like_BT: Tensor) -> Tensor:
    """The log-probabilities that the rollouts came with, of the shape, type and device of `like_BT`."""
    values_BT = np.zeros(like_BT.shape)
    for row, rollout in zip(values_BT, rollouts, strict=True):
        row[: len(rollout.logprobs)] = rollout.logprobs
    return transfer(values_BT, like_BT.dtype, like_BT.device)
