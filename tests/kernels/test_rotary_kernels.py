"""Triton's rotary positions against those of transformers: on a GPU as it compiles them, elsewhere as Triton's
interpreter runs them (`TRITON_INTERPRET=1`)."""

import os
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers.models.llama import modeling_llama

from ttrl_pop.kernels import install, rotary

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("takes a CUDA GPU, or TRITON_INTERPRET=1", allow_module_level=True)

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])


def own(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    turned: tuple[torch.Tensor, torch.Tensor] = getattr(
        modeling_llama.apply_rotary_pos_emb, "own", modeling_llama.apply_rotary_pos_emb
    )(*given)
    return turned


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


@TYPES
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(9, 3, 64), (4, 1, 10), (2, 2, 16)])
def test_turned_as_transformers_turns(
    heads: int, key_heads: int, width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotary, "has_kernels", lambda x: True)
    # In memory token by token, as projections leave them, and cosines that differ between the halves.
    q, k = (drawn(1, 7, count, width, dtype=dtype).transpose(1, 2).requires_grad_() for count in (heads, key_heads))
    cos, sin = drawn(1, 7, width, dtype=dtype), drawn(1, 7, width, dtype=dtype).flip(-1)
    near = 1e-6 if dtype == torch.float32 else 2**-6
    expected, found = own(q, k, cos, sin), rotary.fused(own)(q, k, cos, sin)
    for wanted, got in zip(expected, found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=near, atol=near)
    # A gradient that lies otherwise in memory than what it belongs to.
    grads = [drawn(1, 7, count, width, dtype=dtype).transpose(1, 2) for count in (heads, key_heads)]
    for wanted, got in zip(
        torch.autograd.grad(expected, (q, k), grads), torch.autograd.grad(found, (q, k), grads), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=near, atol=near)


def test_what_does_not_fit_is_left_to_the_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotary, "has_kernels", lambda x: True)
    faster = rotary.fused(lambda q, k, *_, **__: (k, q))
    q, cos = drawn(1, 2, 3, 8), drawn(1, 3, 8)
    assert faster(q, q, cos, cos)[0] is not q
    for given, named in [
        ((q, q, cos[..., :4], cos[..., :4]), {}),
        ((q.expand(2, -1, -1, -1), q, cos, cos), {}),
        ((q, q, cos, cos), {"unsqueeze_dim": 2}),
        ((q[..., :7], q[..., :7], cos[..., :7], cos[..., :7]), {}),
        ((q, q, cos.double(), cos.double()), {}),
    ]:
        assert faster(*given, **named)[0] is given[1]


def test_only_what_turns_alike_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rotary, install):
        monkeypatch.setattr(module, "has_kernels", lambda x: True)

    def otherwise(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return own(q, k, cos, -sin)

    for function, is_replaced in ((own, True), (otherwise, False)):
        family = ModuleType("family")
        monkeypatch.setitem(install.sys.modules, "family", family)
        monkeypatch.setattr(family, install.ROTARY, function, raising=False)
        attention = type("Attention", (torch.nn.Linear,), {"__module__": "family"})(2, 2, device=DEVICE)
        install._fuse_rotary(attention)
        assert (getattr(family, install.ROTARY) is not function) == is_replaced
        # Once is enough.
        again = getattr(family, install.ROTARY)
        install._fuse_rotary(attention)
        assert getattr(family, install.ROTARY) is again
    install._fuse_rotary(SimpleNamespace(parameters=lambda: iter(())))
