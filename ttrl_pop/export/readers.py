"""What reads each norm: found by watching one forward, so that no architecture has to be known by name."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

IDS = (1, 2, 3)
"""Tokens of the forward that is watched."""


class _Watch(TorchFunctionMode):
    """Notes by which linear layers marked tensors are read, and which are read by anything else."""

    def __init__(self, linears: Mapping[int, str]) -> None:
        super().__init__()
        self.linears = linears
        """Name of each linear layer, by the identity of its weight."""
        self.marked: dict[int, tuple[Tensor, str]] = {}
        """Tensors that are the output of a norm or a part of its rows, with the norm's name. Held, so that no other
        tensor gets their identity."""
        self.readers: dict[str, list[str]] = {}
        self.others: dict[str, str] = {}
        """Norms that something else reads, and what."""

    def mark(self, tensor: Tensor, site: str) -> None:
        self.marked[id(tensor)] = (tensor, site)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        read = [self.marked[id(value)] for value in _flat((args, kwargs)) if id(value) in self.marked]
        if not isinstance(result, Tensor | tuple | list) or (isinstance(result, Tensor) and id(result) in self.marked):
            # Its shape, its type, or itself.
            return result
        for tensor, site in read:
            name = self.linears.get(id(args[1])) if func is nn.functional.linear and len(args) > 1 else None
            if name is not None and args[0] is tensor:
                self.readers.setdefault(site, []).append(name)
            elif func is Tensor.__getitem__ and isinstance(result, Tensor) and result.shape[-1] == tensor.shape[-1]:
                # Some of its tokens: of a hidden state the width is never cut.
                self.mark(result, site)
            elif isinstance(result, Tensor) or any(isinstance(each, Tensor) for each in result):
                self.others[site] = getattr(func, "__name__", str(func))
        return result


@torch.no_grad()
def linear_readers(network: Any, sites: Collection[str]) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Names of the linear layers that read each norm, and of each norm that anything else reads, what that is."""
    linears = {id(m.weight): name for name, m in network.named_modules() if isinstance(m, nn.Linear)}
    watch = _Watch(linears)

    def hook(site: str) -> Any:
        return lambda module, inputs, output: watch.mark(output, site)

    hooks = [network.get_submodule(site).register_forward_hook(hook(site)) for site in sites]
    try:
        with watch:
            network(input_ids=torch.tensor([IDS], device=next(network.parameters()).device), use_cache=False)
    finally:
        for each in hooks:
            each.remove()
    readers = {site: tuple(dict.fromkeys(watch.readers.get(site, ()))) for site in sites}
    return readers, watch.others


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [item for each in value for item in _flat(each)]
    if isinstance(value, dict):
        return _flat(list(value.values()))
    return [value]
