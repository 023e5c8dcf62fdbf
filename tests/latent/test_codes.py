"""Codes: their gradient is the one of the paper's equations, their cost that of the whole table."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from ttrl_pop.latent.codes import BIT, AdditiveMap, TableMap, balanced, beyond_free, draw_bits, kl_to_uniform

H, D = 4, 3
ALL_BITS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=H)), dtype=torch.float64)
"""All 2^H codes (16, 4)."""


def probabilities(logits_H: Tensor) -> Tensor:
    """Probability of each of the codes, (16,)."""
    on_H = torch.sigmoid(logits_H)
    return torch.where(ALL_BITS > 0, on_H, 1 - on_H).prod(-1)


def rows(table: TableMap) -> Tensor:
    """The row of each of the codes, (16, D)."""
    return table(torch.zeros_like(ALL_BITS), ALL_BITS)


@pytest.fixture
def logits_H() -> Tensor:
    torch.manual_seed(3)
    return torch.randn(H, dtype=torch.float64) * 2


def expected_gradient(code_map: TableMap | AdditiveMap, logits_H: Tensor, grad_D: Tensor) -> Tensor:
    """Mean gradient of the logits over all codes, each as often as it is drawn."""
    total = torch.zeros(H, dtype=torch.float64)
    for bits_H, probability in zip(ALL_BITS, probabilities(logits_H), strict=True):
        leaf_H = logits_H.clone().requires_grad_()
        code_map(leaf_H, bits_H).backward(grad_D)
        assert leaf_H.grad is not None
        total += probability * leaf_H.grad
    return total


def test_the_gradient_through_the_table_is_that_of_all_its_columns_on_average(logits_H: Tensor) -> None:
    """Equation (8): the gradient of Σ_d G_d W_d, with G the probability of each of the 2^H codes."""
    torch.manual_seed(4)
    table = TableMap(H, D, std=1.0).double()
    grad_D = torch.randn(D, dtype=torch.float64)
    leaf_H = logits_H.clone().requires_grad_()
    (probabilities(leaf_H) @ rows(table).detach()).backward(grad_D)
    assert leaf_H.grad is not None
    torch.testing.assert_close(expected_gradient(table, logits_H, grad_D), leaf_H.grad, atol=1e-12, rtol=0)


def test_the_additive_map_has_that_gradient_for_every_code(logits_H: Tensor) -> None:
    torch.manual_seed(5)
    added = AdditiveMap(H, D, std=1.0).double()
    grad_D = torch.randn(D, dtype=torch.float64)
    on_H = torch.sigmoid(logits_H)
    closed_H = on_H * (1 - on_H) * 2 * (added.signed @ grad_D)
    leaf_H = logits_H.clone().requires_grad_()
    (probabilities(leaf_H) @ added(torch.zeros_like(ALL_BITS), ALL_BITS).detach()).backward(grad_D)
    assert leaf_H.grad is not None
    torch.testing.assert_close(leaf_H.grad, closed_H, atol=1e-12, rtol=0)
    torch.testing.assert_close(expected_gradient(added, logits_H, grad_D), closed_H, atol=1e-12, rtol=0)


def test_the_table_itself_gets_the_gradient_of_the_rows_that_were_read() -> None:
    torch.manual_seed(6)
    table = TableMap(H, D, std=1.0).double()
    bits_BTH = ALL_BITS[torch.tensor([[3, 5, 3], [0, 15, 3]])]
    code_map = table(torch.zeros_like(bits_BTH), bits_BTH)
    grad_BTD = torch.randn(2, 3, D, dtype=torch.float64)
    code_map.backward(grad_BTD)
    assert table.table.grad is not None
    for code, bits_H in enumerate(ALL_BITS):
        index = int((bits_H.long() * 2 ** torch.arange(H)).sum())
        read = (bits_BTH == bits_H).all(-1)
        torch.testing.assert_close(table.table.grad[index], grad_BTD[read].sum(0), msg=f"code {code}")


def test_the_value_is_that_of_the_code_exactly() -> None:
    """Whatever the logits: added to a bit and taken away again, most probabilities would leave a rounding."""
    torch.manual_seed(7)
    logits_BH = torch.randn(1000, H) * 3
    for code_map in (AdditiveMap(H, D, std=1.0), TableMap(H, D, std=1.0)):
        for bits_H in ALL_BITS.float():
            bits_BH = bits_H.expand(1000, H)
            assert torch.equal(code_map(logits_BH, bits_BH), code_map(torch.zeros(1000, H), bits_BH))


def test_additive_codes_have_mean_zero() -> None:
    added = AdditiveMap(H, D, std=1.0).double()
    assert added(torch.zeros_like(ALL_BITS), ALL_BITS).mean(0).abs().max() < 1e-15


def test_the_divergence_is_that_of_the_whole_table(logits_H: Tensor) -> None:
    """Equation (4): H log 2 + Σ_z Q log Q."""
    q = probabilities(logits_H)
    assert math.isclose(float(kl_to_uniform(logits_H).sum()), H * BIT + float((q * q.log()).sum()), abs_tol=1e-12)


def test_a_certain_bit_costs_one_bit_and_an_open_one_nothing() -> None:
    torch.testing.assert_close(kl_to_uniform(torch.tensor([40.0, -40.0, 0.0])), torch.tensor([BIT, BIT, 0.0]))


def test_each_token_has_its_own_free_bits() -> None:
    """A token that spends nothing leaves nothing to another: the hinge stands inside the mean (equation 5)."""
    torch.testing.assert_close(beyond_free(torch.tensor([0.0, 3.0, 1.0]), 1.0), torch.tensor([0.0, 2.0, 0.0]))


def test_bits_come_as_often_as_their_logits_say() -> None:
    uniforms = torch.linspace(0, 1, 1001)[:-1, None]
    logits_H = torch.tensor([-1.0, 0.0, 2.0])
    bits = draw_bits(logits_H.expand(1000, 3), uniforms.expand(1000, 3))
    torch.testing.assert_close(bits.mean(0), torch.sigmoid(logits_H), atol=1e-3, rtol=0)
    assert set(bits.unique().tolist()) == {0.0, 1.0}


def test_balanced_bits_are_on_half_of_the_time() -> None:
    torch.manual_seed(8)
    logits_BTH = torch.randn(3, 7, H, dtype=torch.float64) * torch.tensor([0.1, 1, 10, 40]) + torch.tensor(
        [5, -9, 3, 0]
    )
    found = balanced(logits_BTH)
    torch.testing.assert_close(torch.sigmoid(found).mean((0, 1)), torch.full((H,), 0.5).double(), atol=1e-6, rtol=0)
    # One shift for each bit: what tells tokens apart stays.
    assert (found - logits_BTH).flatten(0, 1).std(0).max() < 1e-12


def test_a_rare_sign_cannot_be_told_by_one_certain_bit() -> None:
    """One token of sixteen against the others: balanced, the others have an open bit, and cost nothing. Where bits may
    lean, those of the others are off more surely."""
    logits_B1 = torch.full((16, 1), -30.0, dtype=torch.float64)
    logits_B1[3] = 30.0
    on_B1 = torch.sigmoid(balanced(logits_B1))
    assert on_B1[3] > 0.999
    torch.testing.assert_close(on_B1[0], torch.tensor([7 / 15]).double(), atol=1e-6, rtol=0)
    others = [float(torch.sigmoid(balanced(logits_B1, lean))[0]) for lean in (0.0, 0.2, 0.5, 1.0)]
    assert others == sorted(others, reverse=True)
    assert others[-1] == pytest.approx(torch.sigmoid(torch.tensor(-60 / 16).double()).item())


def test_bits_lean_in_a_line_to_logits_of_mean_zero() -> None:
    torch.manual_seed(8)
    logits_BTH = torch.randn(3, 7, H, dtype=torch.float64) * 3 + 2
    first, between, last = (balanced(logits_BTH, lean) for lean in (0.0, 0.3, 1.0))
    torch.testing.assert_close(between, 0.7 * first + 0.3 * last, atol=1e-12, rtol=0)
    torch.testing.assert_close(last.mean((0, 1)), torch.zeros(H).double(), atol=1e-12, rtol=0)


def test_the_gradient_of_the_balance_is_exact() -> None:
    torch.manual_seed(9)
    logits_BH = (torch.randn(6, 2, dtype=torch.float64) * 2 + 1).requires_grad_()
    for lean in (0.0, 0.4):
        assert torch.autograd.gradcheck(partial(balanced, lean=lean), (logits_BH,), eps=1e-5, atol=1e-5)
