"""A model folder with a mind in its norms, as `ttrl-pop export --to code` writes it, read as data: its code is not run.

Its weights are those of the family that `model_type` names behind `PREFIX`, and an offset for each norm that
`mind_sites` names, which is added to the norm's output.
"""

from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ttrl_pop.errors import UsageError
from ttrl_pop.kernels.norms import AddOffset

PREFIX = "minds-"
"""Begins the `model_type` of such a folder."""

SITES = "mind_sites"
"""Setting that names the norms, from the model below the LM head."""

OFFSET = "mind"
"""Last name of an offset among the weights."""

_OWN = ("model_type", "architectures", "auto_map", SITES)
"""Settings that the family's own class has in another way, or not at all."""


def settings_of(source: str) -> tuple[Any, tuple[str, ...]]:
    """The configuration that a model is loaded by, and the names of the norms that have an offset."""
    raw, _ = transformers.PreTrainedConfig.get_config_dict(source)
    kind, sites = raw.get("model_type"), raw.get(SITES)
    if not (isinstance(kind, str) and kind.startswith(PREFIX) and isinstance(sites, list)):
        return transformers.AutoConfig.from_pretrained(source, trust_remote_code=False), ()
    rest = {name: value for name, value in raw.items() if name not in _OWN}
    return transformers.AutoConfig.for_model(kind.removeprefix(PREFIX), **rest), tuple(map(str, sites))


def add_offsets(network: Any, source: str, sites: tuple[str, ...]) -> None:
    """Let the norms of a loaded model add the offsets that its folder has for them.

    Raises:
        UsageError: an offset is missing, or is none for the norm that it is named after.
    """
    if not sites:
        return
    found = _offsets(source)
    handles: dict[str, RemovableHandle] = {}
    for site in sites:
        name = f"{network.base_model_prefix}.{site}"
        offset = found.get(f"{name}.{OFFSET}")
        try:
            norm = network.get_submodule(name)
        except AttributeError:
            norm = None
        if norm is None or offset is None or offset.shape != getattr(norm, "weight", offset).shape:
            raise UsageError(f"model folder {source!r}: no offset for the norm {site}; export it anew")
        # No part of the weights that are saved: a class of transformers has no place for it.
        norm.register_buffer(OFFSET, offset.to(network.device), persistent=False)
        handles[name] = norm.register_forward_hook(AddOffset(partial(_rows, norm)))
    network.mind_handles = handles


def offsets_in(network: Any) -> dict[str, Tensor]:
    """The offsets that a loaded model's norms add, by the norms' names."""
    return {name: network.get_submodule(name).get_buffer(OFFSET) for name in getattr(network, "mind_handles", {})}


def is_minded(network: Any) -> bool:
    """Whether a loaded model's folder has a mind, which transformers alone does not open."""
    return hasattr(network, "mind_handles")


def take_offsets(network: Any) -> dict[str, Tensor]:
    """The offsets that a loaded model's norms add, which they do no longer."""
    found = offsets_in(network)
    for name in found:
        network.mind_handles.pop(name).remove()
        delattr(network.get_submodule(name), OFFSET)
    return found


def _offsets(source: str) -> dict[str, Tensor]:
    offsets: dict[str, Tensor] = {}
    for file in sorted(Path(source).glob("*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as tensors:
            offsets |= {name: tensors.get_tensor(name) for name in tensors.keys() if name.endswith(f".{OFFSET}")}  # noqa: SIM118
    return offsets


def _rows(norm: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    """The offset of a norm, for each of so many tokens."""
    offset = norm.get_buffer(OFFSET)
    wide = torch.promote_types(offset.dtype, torch.float32)
    return offset.to(wide)[None], torch.zeros(count, dtype=torch.long, device=offset.device)
