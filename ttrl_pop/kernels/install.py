"""Which layers of a model are computed by the functions of `ttrl_pop.kernels.fused`.

`fuse(network)` gives RMSNorm, linear layers with and without LoRA, and gated feed-forward layers their faster forwards.
All but linear layers are known by what they compute, not by their names: they are replaced where their output agrees.

An adapter is taken into its weights: W' = W + scale · B · A stands beside W, and is made anew where A or B have
changed, so that a forward has no products for adapters, and a backward pass only those of their own gradients. Where
weights are narrower than adapters, as in bf16, the sum would lose what is learned; there, and where all W' would take
too much memory, adapters are computed beside W. W', and weights without adapters, are laid out for products where that
is known and there is room (`ttrl_pop.kernels.matmul`), those W' that read the same states as one where a function asks
for all of them. Without gradients a decoder layer of the plain form is one function (`ttrl_pop.kernels.plain_layer`).
"""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn

from ttrl_pop.kernels import matmul, plain_layer, rotary
from ttrl_pop.kernels.fused import Projection, gated_mlp, linear
from ttrl_pop.kernels.joined import Joined
from ttrl_pop.kernels.loops import Norm
from ttrl_pop.kernels.matmul import LaidOutWeight
from ttrl_pop.kernels.memory import limit_bytes
from ttrl_pop.kernels.norms import ADDED, FusedNorm, gain_of, has_kernels
from ttrl_pop.kernels.parts import Parts
from ttrl_pop.kernels.plain_layer import GATED, PROJECTIONS

MERGED_SHARE = 0.125
"""Share of the memory of a process that merged weights may take."""
LAYOUT_SHARE = 0.125
"""Share of the memory of a process that weights may take once more, laid out for products."""
ROTARY = "apply_rotary_pos_emb"
"""Name of the function by which families of transformers turn queries and keys."""
TOGETHER = (PROJECTIONS[:3], GATED[:2])
"""Names of linear layers of one module that read the same states, in the order in which they do."""


def fuse(network: nn.Module, plan: plain_layer.Asked) -> None:
    """Give the layers of `network` that are known here their faster forward. Their frozen weights get no gradient.

    Where there are kernels for it, also the function by which all models of its family turn queries and keys: it has no
    layer.

    Args:
        plan: for a look at decoder layers.
    """
    projections = _projections(network)
    norms: dict[nn.Module, Norm] = {}
    gated: set[nn.Module] = set()
    for module, projection in projections.items():
        _fuse_linear(module, projection)
    for module in network.modules():
        if "rmsnorm" in type(module).__name__.lower():
            if norm := _fuse_norm(module):
                norms[module] = norm
        elif "attention" in type(module).__name__.lower():
            _fuse_rotary(module)
        elif all(getattr(module, name, None) in projections for name in GATED) and _fuse_mlp(
            module, [projections[getattr(module, name)] for name in GATED]
        ):
            gated.add(module)
    used = {getattr(module, name) for module in gated for name in GATED}
    for module in network.modules():
        linears = plain_layer.parts(module, norms, gated)
        if linears and projections.keys() >= {*linears} and _fuse_layer(module, projections, norms, plan):
            used.update(linears)
    for module in projections.keys() - used:
        _part(projections[module])


def second_weights(network: nn.Module, device: torch.device) -> tuple[int, int]:
    """Bytes that `fuse` would take on `device` beside the weights: merged with their adapters, and laid out. The
    network need hold no numbers."""
    adapted, frozen = _linear_layers(network)
    limit = limit_bytes(device)
    merged = _bytes(module.base_layer.weight for module in adapted) if _merges(adapted, limit) else 0
    weights = [*([module.base_layer.weight for module in adapted] if merged else ()), *(m.weight for m in frozen)]
    room, laid_out = LAYOUT_SHARE * limit, 0
    for weight in weights:
        size = matmul.layout_bytes(weight) if matmul.is_laid_out(weight.dtype, device) else 0
        laid_out += size if laid_out + size <= room else 0
    return merged, laid_out


def _linear_layers(network: nn.Module) -> tuple[list[Any], list[nn.Linear]]:
    """The linear layers whose weights are frozen: those with an adapter, and those without."""
    adapted: list[Any] = []
    frozen: list[nn.Linear] = []
    for module in network.modules():
        if isinstance(module, lora.Linear) and type(module.base_layer) is nn.Linear:
            adapted.append(module)
        elif type(module) is nn.Linear and not module.weight.requires_grad:
            frozen.append(module)
    bases = {module.base_layer for module in adapted}
    return adapted, [module for module in frozen if module not in bases]


def _merges(adapted: list[Any], limit: int) -> bool:
    """Whether adapters are taken into their weights: there is room, and the weights are as wide as the adapters."""
    weights = [module.base_layer.weight for module in adapted]
    same = all(m.base_layer.weight.dtype == m.lora_B[m.active_adapters[0]].weight.dtype for m in adapted)
    return same and _bytes(weights) <= MERGED_SHARE * limit


def _bytes(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)


def _projections(network: nn.Module) -> dict[nn.Module, Projection]:
    """The linear layers whose weights are frozen, with the adapters in them."""
    adapted, frozen = _linear_layers(network)
    limit = limit_bytes(next(network.parameters()).device)
    merge = _merges(adapted, limit)
    room = LAYOUT_SHARE * limit

    def laid_out(weight: Tensor, *parts: Tensor) -> LaidOutWeight | None:
        """A weight laid out where there is room for it, or for the parts that it holds."""
        nonlocal room
        size = sum(map(matmul.layout_bytes, parts or (weight,)))
        found = matmul.lay_out(weight) if size <= room else None
        room -= size if found else 0
        return found

    found: dict[nn.Module, Projection] = {}
    # Some families name them in another order than that in which they ask.
    groups = {min(group, key=adapted.index): group for group in _groups(network, adapted)} if merge else {}
    for module in adapted:
        if module in found:
            continue
        # Where there is no room for all of a group there may be some for one of it.
        group = groups.get(module, [module])
        weights = [member.base_layer.weight for member in group]
        outputs = [len(weight) for weight in weights]
        if len(group) > 1 and (whole := laid_out(weights[0].new_empty(sum(outputs), weights[0].shape[1]), *weights)):
            joined = Joined(whole, outputs, [member.base_layer.bias for member in group])
            for member, weight in zip(group, joined.weights, strict=True):
                found[member] = Projection(*_numbers(member), weight, joined=joined)
            joined.up_to_date = [found[member].multiplier for member in group]
            continue
        merged = torch.empty_like(module.base_layer.weight, requires_grad=False) if merge else None
        found[module] = Projection(*_numbers(module), merged, None if merged is None else laid_out(merged))
    for module in frozen:
        found[module] = Projection(module.weight, module.bias, laid_out=laid_out(module.weight))
    return found


def _numbers(module: Any) -> tuple[Tensor, Tensor | None, Tensor, Tensor, float]:
    """Weight, bias, A, B and scale of a linear layer with an adapter."""
    (name,) = module.active_adapters
    base, down, up = module.base_layer, module.lora_A[name].weight, module.lora_B[name].weight
    return base.weight, base.bias, down, up, module.scaling[name]


def _groups(network: nn.Module, adapted: list[Any]) -> Iterator[list[Any]]:
    """Layers with adapters that read the same states."""
    known = set(adapted)
    for parent in network.modules():
        for names in TOGETHER:
            group: list[Any] = [getattr(parent, name, None) for name in names]
            if known.issuperset(group) and len({member.base_layer.in_features for member in group}) == 1:
                yield group


def _fuse_linear(module: Any, projection: Projection) -> None:
    """Replace the forward of `module`, which is `projection`."""
    if projection.up is None:
        if projection.laid_out:
            module.forward = lambda x: linear(x, projection)
        return
    own = module.forward
    module.forward = lambda x: own(x) if module.disable_adapters else linear(x, projection)


def _part(projection: Projection) -> None:
    """Lay out a weight by itself that was joined with others, for which nobody asks together."""
    if projection.joined and projection.merged is not None:
        projection.joined = None
        # As many bytes as its part of the layout of all, which goes with the last of them.
        projection.laid_out = matmul.lay_out(projection.merged)


def _fuse_layer(
    module: Any, projections: dict[nn.Module, Projection], norms: dict[nn.Module, Norm], plan: plain_layer.Asked
) -> bool:
    """Replace the forward of `module`, which has the parts of the plain form, where that is what it computes."""
    own = module.forward
    layer = plain_layer.plain_layer(module, projections, norms, plan)
    if layer:
        module.forward = lambda x, *rest, **given: (
            layer(x, **given) if not rest and layer.fits(x, **given) else own(x, *rest, **given)
        )
    return layer is not None


def _fuse_mlp(module: Any, projections: list[Projection]) -> bool:
    """Replace the forward of `module` if it computes a feed-forward layer gated by SiLU, and say so."""
    own = module.forward
    weight = projections[0].weight
    # On a GPU so many rows that both sides round alike: few take a kernel of their own.
    rows = 512 if has_kernels(weight) else 2
    probe = torch.linspace(-2, 3, weight.shape[1], dtype=weight.dtype, device=weight.device).repeat(rows, 1)
    probe *= torch.linspace(0.5, 1, rows, dtype=weight.dtype, device=weight.device)[:, None]
    try:
        with torch.no_grad():
            expected = own(probe)
            gap = (gated_mlp(probe, *projections) - expected).abs().max()
            agrees = bool(gap <= 1e-5 * expected.abs().max())
    except (TypeError, ValueError, IndexError, RuntimeError):
        # Its layers fit together in another way.
        return False
    if agrees:
        parts = Parts((module,))
        module.forward = lambda x: gated_mlp(x, *projections) if parts.are_plain() else own(x)
    return agrees


def _fuse_norm(module: Any) -> Norm | None:
    """Replace the forward of `module` if it computes an RMSNorm, and say which."""
    found = gain_of(module)
    if found is None:
        return None
    module.forward = FusedNorm(module, *found)
    weight, eps, gain = found
    return Norm(weight, eps, ADDED[gain])


def _fuse_rotary(module: Any) -> None:
    """Replace what the family of `module` turns queries and keys with, where a kernel computes the same."""
    family = sys.modules[type(module).__module__]
    own = getattr(family, ROTARY, None)
    weight = next(module.parameters(), None)
    if own is None or weight is None or hasattr(own, "own"):
        return
    if not has_kernels(weight):
        return
    faster = rotary.fused(own)
    q, k, cos, sin = (
        torch.linspace(-1, 1, heads * 16, dtype=weight.dtype, device=weight.device).view(1, heads, 2, 8)
        for heads in (3, 1, 1, 1)
    )
    try:
        with torch.no_grad():
            # Sines are not cosines: what takes one for the other must not agree.
            given = q, k, cos[0], sin[0].flip(-1) / 2
            near = max(1e-5, torch.finfo(weight.dtype).eps)
            agrees = all(
                torch.allclose(y, expected, rtol=near, atol=near)
                for y, expected in zip(faster(*given), own(*given), strict=True)
            )
    except (TypeError, ValueError, IndexError, RuntimeError):
        return
    if agrees:
        setattr(family, ROTARY, faster)
