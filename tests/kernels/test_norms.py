"""Norms and their offsets: rounded once, by whichever way they are asked."""

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ttrl_pop.kernels import norms
from ttrl_pop.kernels.norms import AddOffset, FusedNorm, gain_of, offset_rms_norm, rms_norm

WIDTH, ROWS = 64, 512
SMALL = 1e-3
"""An offset far below the grid of bf16 at 1, which is 1/128."""


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def offsets(value: float) -> tuple[Tensor, Tensor]:
    return torch.full((2, WIDTH), value), torch.arange(ROWS) % 2


def norm_of(kind: str) -> nn.Module:
    """A norm in bf16 whose weights are no powers of two."""
    made = {"llama": LlamaRMSNorm, "gemma": Gemma3RMSNorm, "layer": nn.LayerNorm}[kind](WIDTH).to(torch.bfloat16)
    with torch.no_grad():
        made.weight.copy_(0.1 * drawn(WIDTH) + (0 if kind == "gemma" else 1))
    return made.requires_grad_(False)


def fused(norm: nn.Module) -> nn.Module:
    found = gain_of(norm)
    assert found is not None
    norm.forward = FusedNorm(norm, *found)
    return norm


FORMS = {
    "fused llama": lambda: fused(norm_of("llama")),
    "fused gemma": lambda: fused(norm_of("gemma")),
    "llama": lambda: norm_of("llama"),
    "gemma": lambda: norm_of("gemma"),
    "layer": lambda: norm_of("layer"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_small_offset_arrives_in_bf16(form: str) -> None:
    """Added behind a norm that has rounded, half of it would be lost."""
    norm = FORMS[form]()
    x = drawn(ROWS, WIDTH, seed=1).bfloat16()[None]
    plain = norm(x)
    value = 0.0
    norm.register_forward_hook(AddOffset(lambda count: offsets(value)))
    assert torch.equal(norm(x), plain)
    for value in (SMALL, -SMALL):
        moved = (norm(x).double() - plain.double()).mean()
        assert abs(float(moved) / value - 1) < 0.15


def test_behind_another_hook_what_that_gives_is_added_to_once() -> None:
    x = drawn(ROWS, WIDTH, seed=1).bfloat16()
    for form in FORMS.values():
        norm = form()
        plain = norm(x)
        norm.register_forward_hook(lambda module, inputs, output: 2 * output)
        norm.register_forward_hook(AddOffset(lambda count: offsets(1.0)))
        assert torch.equal(norm(x), (2 * plain.float() + 1).bfloat16())


def test_a_norm_of_an_unknown_kind_is_added_to_as_it_is() -> None:
    class OddRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(WIDTH, dtype=torch.bfloat16)), 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return x / x.abs().amax(-1, keepdim=True) * self.weight

    x, norm = drawn(ROWS, WIDTH).bfloat16(), OddRMSNorm()
    plain = norm(x)
    norm.register_forward_hook(AddOffset(lambda count: offsets(1.0)))
    assert torch.equal(norm(x), (plain.float() + 1).bfloat16())


@pytest.mark.parametrize("gain", norms.ADDED)
def test_norm_and_offset_in_one_have_the_slopes_of_both(gain: norms.Gain) -> None:
    x, weight, table = (drawn(*shape).double().requires_grad_() for shape in ((5, 8), (8,), (3, 8)))
    row = torch.tensor([2, 0, 0, 1, 2])
    both = offset_rms_norm(x, weight, 1e-3, gain, table, row)
    apart = rms_norm(x, weight, 1e-3, gain) + table[row]
    torch.testing.assert_close(both, apart)
    for found, expected in zip(*(torch.autograd.grad(y.sin().sum(), (x, table)) for y in (both, apart)), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_weight_of_a_norm_can_learn_and_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer of somebody else may train the norms, too; kernels have no gradient for them."""
    norm = norm_of("llama").requires_grad_()
    x = drawn(ROWS, WIDTH).bfloat16()
    norm.register_forward_hook(AddOffset(lambda count: offsets(SMALL)))
    norm(x)
    monkeypatch.setattr(norms, "has_kernels", lambda _: True)
    norm(x).float().square().sum().backward()
    assert norm.weight.grad is not None
    assert bool(norm.weight.grad.abs().sum() > 0)
    doubled = nn.Parameter(2 * norm.weight.detach())
    monkeypatch.undo()
    before = norm(x).float()
    norm.weight = doubled
    torch.testing.assert_close(norm(x).float(), 2 * before, rtol=0.02, atol=0.02)
