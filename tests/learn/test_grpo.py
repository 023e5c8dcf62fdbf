"""The learner's formulas, against hand arithmetic and plain code."""

import math

import pytest
import torch

from ttrl_pop.learn import grpo
from ttrl_pop.population import norm_noise

LOSSES = ("grpo", "dapo", "dr_grpo", "gspo")


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    # mean 1/2, std 1/2
    expected = torch.tensor([0.5, -0.5, -0.5, 0.5], dtype=torch.float64)
    torch.testing.assert_close(grpo.advantages(rewards, "grpo"), expected / (0.5 + 1e-4))
    torch.testing.assert_close(grpo.advantages(rewards, "dr_grpo"), expected)
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    # mean 1/4, variance 3/16
    std = math.sqrt(3) / 4
    assert float(grpo.advantages(rewards, "dapo")[0]) == pytest.approx(0.75 / (std + 1e-4))


def test_equal_rewards_carry_no_signal() -> None:
    assert not grpo.has_signal(torch.full((4,), 0.3))
    assert not grpo.has_signal(torch.tensor([0.5, 0.5 + 5e-7], dtype=torch.float64))
    assert grpo.has_signal(torch.tensor([0.5, 0.5 + 2e-6], dtype=torch.float64))
    assert not grpo.advantages(torch.full((4,), 0.3, dtype=torch.float64), "grpo").abs().gt(1e-12).any()


def test_token_weights_by_hand() -> None:
    lengths = torch.tensor([1, 3])
    f = lambda *x: torch.tensor(x, dtype=torch.float64)  # noqa: E731
    torch.testing.assert_close(grpo.token_weights(lengths, "grpo", 8), f(1 / 2, 1 / 6))
    torch.testing.assert_close(grpo.token_weights(lengths, "gspo", 8), f(1 / 2, 1 / 6))
    torch.testing.assert_close(grpo.token_weights(lengths, "dapo", 8), f(1 / 4, 1 / 4))
    torch.testing.assert_close(grpo.token_weights(lengths, "dr_grpo", 8), f(1 / 16, 1 / 16))


def test_policy_loss_by_hand() -> None:
    ratios = torch.tensor([[1.0, 1.5, 0.5]], dtype=torch.float64)
    up, clipped = grpo.policy_loss(ratios.log(), torch.tensor([2.0], dtype=torch.float64), 0.2, 0.28)
    torch.testing.assert_close(up, torch.tensor([[-2.0, -2.56, -1.0]], dtype=torch.float64))
    assert clipped.tolist() == [[False, True, False]]
    down, clipped = grpo.policy_loss(ratios.log(), torch.tensor([-2.0], dtype=torch.float64), 0.2, 0.28)
    torch.testing.assert_close(down, torch.tensor([[2.0, 3.0, 1.6]], dtype=torch.float64))
    assert clipped.tolist() == [[False, False, True]]


@pytest.mark.parametrize("loss", LOSSES)
def test_on_policy_gradient_is_reinforce(loss: grpo.Loss) -> None:
    torch.manual_seed(0)
    new = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    advantages = torch.tensor([1.5, -0.5], dtype=torch.float64)
    ratios = grpo.log_ratios(new, new.detach(), mask, loss)
    token_loss, _ = grpo.policy_loss(ratios, advantages, 0.2, 0.28)
    weights = grpo.token_weights(mask.sum(-1), loss, 3)
    (token_loss * weights[:, None])[mask].sum().backward()
    expected = -(advantages * weights)[:, None] * mask
    torch.testing.assert_close(new.grad, expected)


def test_gspo_equals_the_sequence_form() -> None:
    torch.manual_seed(0)
    new = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    old = new.detach() + torch.randn(3, 4, dtype=torch.float64) * 0.1
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    advantages = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    ratios = grpo.log_ratios(new, old, mask, "gspo")
    token_loss, _ = grpo.policy_loss(ratios, advantages, 0.2, 0.28)
    weights = grpo.token_weights(mask.sum(-1), "gspo", 4)
    loss = (token_loss * weights[:, None])[mask].sum()
    (gradient,) = torch.autograd.grad(loss, new)

    lengths = mask.sum(-1)
    sequence = (((new - old) * mask).sum(-1) / lengths).exp()
    plain = -torch.minimum(sequence * advantages, sequence.clamp(0.8, 1.28) * advantages).mean()
    (expected,) = torch.autograd.grad(plain, new)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(gradient, expected)


def test_k3_is_an_unbiased_kl_and_never_negative() -> None:
    torch.manual_seed(0)
    new = torch.log_softmax(torch.randn(6, dtype=torch.float64), 0)
    base = torch.log_softmax(torch.randn(6, dtype=torch.float64), 0)
    estimates = grpo.k3(new[None], base[None])
    assert (estimates >= 0).all()
    exact = (new.exp() * (new - base)).sum()
    torch.testing.assert_close((new.exp() * estimates[0]).sum(), exact)


def test_truncated_importance_weights() -> None:
    learner = torch.tensor([[0.0, math.log(10.0), math.log(0.5)]], dtype=torch.float64, requires_grad=True)
    weights = grpo.truncated_importance(learner, torch.zeros(1, 3, dtype=torch.float64), 3.0)
    torch.testing.assert_close(weights, torch.tensor([[1.0, 3.0, 0.5]], dtype=torch.float64))
    assert not weights.requires_grad


def test_gaussian_kl_equals_torch() -> None:
    mu, log_sigma = torch.tensor([0.3, -1.0]), torch.tensor([-0.5, 0.2])
    own = torch.distributions.Normal(mu, log_sigma.exp())
    prior = torch.distributions.Normal(torch.zeros(2), torch.full((2,), 0.7))
    torch.testing.assert_close(
        norm_noise.gaussian_kl(mu, log_sigma, torch.tensor(0.7)), torch.distributions.kl_divergence(own, prior)
    )
