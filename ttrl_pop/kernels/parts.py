"""Parts of a module whose work one function does: whether that may stand for them."""

from collections.abc import Collection, Iterable
from typing import Any

from torch import nn

from ttrl_pop.kernels.norms import AddOffset


class Parts:
    """The modules right below some modules, as they are now."""

    def __init__(self, parents: Iterable[nn.Module], with_offsets: Collection[nn.Module] = ()) -> None:
        """`with_offsets`: those whose `AddOffset`, the only hook that a part may have, the function asks by itself."""
        self._places = [
            (parent, name, part, vars(part).get("forward"), part in with_offsets)
            for parent in parents
            for name, part in parent.named_children()
        ]
        self._adapted: list[Any] = [part for _, _, part, *_ in self._places if hasattr(part, "disable_adapters")]

    def are_plain(self) -> bool:
        """Whether each is in its place, with the forward that it had, no hook waits for it, and adapters are on."""
        for parent, name, part, forward, takes_offset in self._places:
            if parent._modules.get(name) is not part or part.__dict__.get("forward") is not forward:
                return False
            hooks = part._forward_hooks
            if part._forward_pre_hooks or (hooks and not (takes_offset and _are_one_offset(hooks))):
                return False
        return not any(part.disable_adapters for part in self._adapted)


def _are_one_offset(hooks: dict[int, Any]) -> bool:
    return len(hooks) == 1 and type(next(iter(hooks.values()))) is AddOffset
