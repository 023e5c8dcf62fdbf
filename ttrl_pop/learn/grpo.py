"""The formulas of the learner, as pure functions on tensors.

Per token t of rollout i:  ratio r = exp(logp_new − logp_old);  loss ℓ = −min(r·A, clip(r, 1 − low, 1 + high)·A);
total L = Σ w_it · ℓ_it. The four losses differ in the weights w (and `gspo` in the ratio), and the weights belong to
the whole step, so that how a step is cut into micro-batches cannot matter.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ttrl_pop.types import NO_SIGNAL

Loss = Literal["grpo", "dapo", "dr_grpo", "gspo"]


def has_signal(rewards_G: Float[Tensor, "G"]) -> bool:
    """Whether max − min reaches `NO_SIGNAL`; else every advantage is zero."""
    return bool(rewards_G.max() - rewards_G.min() >= NO_SIGNAL)


def advantages(rewards_G: Float[Tensor, "G"], loss: Loss) -> Float[Tensor, "G"]:
    """(reward − mean) / (std + 1e-4) within a group (GRPO, arXiv 2402.03300 eq. 4.1.2); `dr_grpo` does not divide, as
    that weighs problems by how sure the group is (arXiv 2503.20783). std is the population's (divides by G)."""
    centred = rewards_G - rewards_G.mean()
    if loss == "dr_grpo":
        return centred
    return centred / (centred.square().mean().sqrt() + 1e-4)


def token_weights(lengths_N: Int[Tensor, "N"], loss: Loss, max_new_tokens: int) -> Float[Tensor, "N"]:
    """Weight of every token of a rollout, for the N rollouts that the whole step counts.

    `grpo`, `gspo`: 1 / (N·length), the mean over rollouts of the mean over tokens (arXiv 2402.03300, 2507.18071);
    `dapo`: 1 / Σ lengths, the mean over all tokens (arXiv 2503.14476); `dr_grpo`: 1 / (N·max_new_tokens), a constant
    (arXiv 2503.20783). Rollouts of length 0 count in N and have no token to weigh.
    """
    count = len(lengths_N)
    lengths = lengths_N.to(torch.float64)
    if loss in ("grpo", "gspo"):
        return 1.0 / (count * lengths.clamp(min=1))
    if loss == "dapo":
        return torch.full_like(lengths, 1.0 / max(float(lengths.sum()), 1.0))
    return torch.full_like(lengths, 1.0 / (count * max_new_tokens))


def log_ratios(
    new_BT: Float[Tensor, "B T"], old_BT: Float[Tensor, "B T"], mask_BT: Bool[Tensor, "B T"], loss: Loss
) -> Float[Tensor, "B T"]:
    """log r per token. `gspo` (arXiv 2507.18071 eq. 14): the mean over the rollout, whose gradient flows through each
    token's own log-probability."""
    delta = (new_BT - old_BT).masked_fill(~mask_BT, 0.0)
    if loss != "gspo":
        return delta
    lengths = mask_BT.sum(-1, keepdim=True).clamp(min=1)
    mean = (delta.sum(-1, keepdim=True) / lengths).detach()
    return mean + (delta - delta.detach())


def policy_loss(
    log_ratios_BT: Float[Tensor, "B T"],
    advantages_B: Float[Tensor, "B"],
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """−min(r·A, clip(r, 1 − low, 1 + high)·A) per token, and where the clip was active (PPO, arXiv 1707.06347 eq. 7;
    unequal bounds: DAPO, arXiv 2503.14476)."""
    ratio = log_ratios_BT.exp()
    advantage = advantages_B[:, None]
    plain = ratio * advantage
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    return -torch.minimum(plain, clipped), clipped < plain


def k3(new_BT: Float[Tensor, "B T"], base_BT: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """exp(base − new) − (base − new) − 1 per token: an unbiased, never negative estimate of KL(new ‖ base) at tokens
    drawn from `new` (Schulman, "Approximating KL divergence", 2020)."""
    delta = base_BT - new_BT
    return delta.exp() - delta - 1


def truncated_importance(
    learner_BT: Float[Tensor, "B T"], sampler_BT: Float[Tensor, "B T"], cap: float
) -> Float[Tensor, "B T"]:
    """min(p_learner / p_sampler, cap) per token, without gradient: corrects for rollouts that were drawn from another
    distribution than the one that learns (truncated importance sampling, Ionides 2008; for parameter noise:
    PSN-RLVR, arXiv 2602.02555)."""
    return (learner_BT - sampler_BT).detach().exp().clamp(max=cap)
