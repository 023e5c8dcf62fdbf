"""Decoder layers of the plain form without gradients: products, and loops between them.

    y = norm(x) + offset
    q, k, v = the products of y; q and k, which may be normed by head, turned by their positions
    x = x + o(attention)
    x = x + mlp(norm(x) + offset)

Asked module by module, as transformers asks them, a decode step on a CPU spends a fifth of its time on the way from one
to the next (dev/LOG.md). A layer is known by its parts and by what it computes. Where something waits for one of them
to be asked, as a hook or another module in its place does, the layer is asked as before.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ttrl_pop.kernels import loops
from ttrl_pop.kernels.fused import Projection, gated_mlp, products
from ttrl_pop.kernels.loops import Norm
from ttrl_pop.kernels.memory import is_exhausted
from ttrl_pop.kernels.parts import Parts

PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
HEAD_NORMS = ("q_norm", "k_norm")
GATED = ("gate_proj", "up_proj", "down_proj")
"""Names that transformers gives to the parts of a layer, of its attention, and of its feed-forward layer."""


@runtime_checkable
class Asked(Protocol):
    """A plan (`ttrl_pop.packing.attention.Plan`) for a look at a layer: it keeps what it was asked with last."""

    asked: tuple[int, float, int | None] | None
    """Number of the layer, scale and window."""


class PlainLayer:
    """A layer of the plain form, by its numbers."""

    def __init__(
        self,
        module: Any,
        projections: dict[nn.Module, Projection],
        norms: dict[nn.Module, Norm],
        parts: Parts,
        asked: tuple[int, float, int | None],
    ) -> None:
        """
        Args:
            module: a layer that `parts` knows.
            norms: what each of its norms computes.
            parts: of the layer, its attention and its feed-forward layer.
            asked: what its attention asks a plan with beside queries, keys and values.
        """
        attending = module.self_attn
        self.number, self.scale, self.window = asked
        self._norms = tuple((norm, norms[norm]) for norm in (module.input_layernorm, module.post_attention_layernorm))
        self._heads: tuple[Norm, Norm] | None = None
        if hasattr(attending, HEAD_NORMS[0]):
            self._heads = norms[attending.q_norm], norms[attending.k_norm]
        *qkv, out = (getattr(attending, name) for name in PROJECTIONS)
        mlp = [getattr(module.mlp, name) for name in GATED]
        self._out = projections[out]
        self._qkv, self._mlp = ([projections[each] for each in group] for group in (qkv, mlp))
        self._width: int = attending.head_dim
        self._parts = parts

    def fits(self, states_1ND: Tensor, position_embeddings: Any = None, plan: Any = None, **given: Any) -> bool:
        """Whether this is the layer here and now."""
        if plan is None or position_embeddings is None or states_1ND.shape[0] != 1 or not loops.are_for(states_1ND):
            return False
        if given.get("past_key_values") is not None:
            return False
        # A family may turn a part of each head, and have angles for that alone.
        turns = 1, states_1ND.shape[1], self._width
        fit = all(each.shape == turns and each.dtype == states_1ND.dtype for each in position_embeddings)
        return fit and self._parts.are_plain()

    def __call__(
        self, states_1ND: Float[Tensor, "1 N D"], position_embeddings: tuple[Tensor, Tensor], plan: Any, **_: Any
    ) -> Float[Tensor, "1 N D"]:
        """What the layer computes; `plan` says who sees whom (`ttrl_pop.packing.attention.Plan`)."""
        x_ND = states_1ND[0]
        (before, of_attention), (between, of_mlp) = self._norms
        cos_ND, sin_ND = (each[0] for each in position_embeddings)
        y_ND = loops.rms_norm(x_ND, of_attention, _offsets(before, x_ND))
        q, k, v = products(y_ND, self._qkv)
        qkv = loops.turn(q, k, v, cos_ND, sin_ND, self._heads)
        seen_NHD = plan.attend(self.number, *qkv, self.scale, self.window)
        z_ND = self._out.times(seen_NHD.flatten(1))
        x_ND, y_ND = loops.add_rms_norm(x_ND, z_ND, of_mlp, _offsets(between, x_ND))
        return x_ND.add_(gated_mlp(y_ND, *self._mlp))[None]


def parts(module: nn.Module, norms: dict[nn.Module, Norm], gated: set[nn.Module]) -> list[nn.Module] | None:
    """The linear layers of `module`, where it has the parts of the plain form and no others.

    Args:
        norms: the RMSNorms of the network.
        gated: its feed-forward layers that are gated by SiLU.
    """
    named = dict(module.named_children())
    if set(named) != {*PARTS} or named["mlp"] not in gated:
        return None
    attending = dict(named["self_attn"].named_children())
    of_heads = [attending.pop(name) for name in HEAD_NORMS if name in attending]
    if set(attending) != {*PROJECTIONS} or len(of_heads) == 1:
        return None
    if not norms.keys() >= {named["input_layernorm"], named["post_attention_layernorm"], *of_heads}:
        return None
    if len({(norms[norm].eps, norms[norm].added) for norm in of_heads}) > 1:
        return None
    return [attending[name] for name in PROJECTIONS]


@torch.no_grad()
def plain_layer(
    module: Any, projections: dict[nn.Module, Projection], norms: dict[nn.Module, Norm], plan: Asked
) -> PlainLayer | None:
    """The layer `module`, whose `parts` are known, if that is what its own forward computes; else None."""
    like = projections[module.self_attn.q_proj].weight
    if not loops.are_for(like):
        return None
    inner = Parts((module, module.self_attn, module.mlp), (module.input_layernorm, module.post_attention_layernorm))
    if not inner.are_plain():
        return None
    width = like.shape[1]
    x = torch.linspace(-2, 3, 3 * width, dtype=like.dtype).view(1, 3, width)
    plan.asked = None
    try:
        heads = module.self_attn.head_dim
        # Sines are not cosines: what takes one for the other must not agree. A layer that asks for more than these, as
        # for positions by number, is another one.
        cos, sin = (torch.linspace(-1, 1, 3 * heads, dtype=like.dtype).view(1, 3, heads) for _ in range(2))
        turns = cos, sin.flip(-1) / 2
        expected = module.forward(x, position_embeddings=turns, plan=plan)
        if plan.asked is None or type(expected) is not Tensor:
            return None
        found = PlainLayer(module, projections, norms, inner, plan.asked)
        y = found(x, turns, plan)
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        if is_exhausted(error):
            raise
        # Its parts fit together in another way.
        return None
    agrees = (y - expected).abs().max() <= 1e-5 * expected.abs().max()
    return found if bool(agrees) else None


def _offsets(norm: nn.Module, like: Tensor) -> loops.Offsets | None:
    """What the hook of a norm adds to its states, in their type."""
    hooks = norm._forward_hooks
    if not hooks:
        return None
    hook: Any = next(iter(hooks.values()))
    found: loops.Offsets | None = hook.rows(len(like))
    return None if found is None else (found[0].to(like.dtype), found[1])
