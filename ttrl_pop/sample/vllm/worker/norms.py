"""The data plane: offsets of all minds in one table, and norms that add the offset of each token's mind.

    y = Norm(x) + table[site, index[t]]     for token t of the batch;   table[:, 0] = 0 is the model without a mind

A norm keeps its weights and its name: only its class changes, to one whose forward adds the offset to the output. The
residual, which vLLM's norms return beside it, stays as it is. The sum is taken in float32 and rounded once, as in
`ttrl_pop.kernels.norms.AddOffset`: in bf16 what the norm reads is normed once more, as its output is rounded already.
Shapes: S sites, K slots, D hidden size, T tokens of a batch.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ttrl_pop.kernels.norms import gain_of, unrounded_rms_norm

NOBODY = -1
"""Slot of a request that names no mind: allowed in warm-up, an error afterwards."""


class Minds:
    """The table [S, K + 1, D] of a worker and the slot of each token of its batch."""

    def __init__(self, model: nn.Module, sites: Sequence[str], slots: int, tokens: int, device: torch.device) -> None:
        """Give every norm named in `sites` the class that adds offsets.

        Args:
            tokens: the most that one batch holds.

        Raises:
            ValueError: the model has no module of such a name, or not all are equally wide.
        """
        modules = dict(model.named_modules())
        missing = [name for name in sites if name not in modules]
        if missing:
            raise ValueError(
                f"vLLM's {type(model).__name__} has no norm {missing[0]!r} ({len(missing)} of {len(sites)} norms of "
                "the learner's model are missing there); use --backend hf"
            )
        norms = [modules[name] for name in sites]
        widths = {tuple(norm.weight.shape) for norm in norms}
        if len(widths) != 1 or any(len(shape) != 1 for shape in widths):
            raise ValueError(f"norms of the learner's model have the shapes {sorted(widths)} in vLLM; use --backend hf")
        ((width,),) = widths
        self.table = torch.zeros(len(norms), slots + 1, width, device=device)
        self.index = torch.zeros(tokens, dtype=torch.int64, device=device)
        self.armed = False
        self.fixed: int | None = None
        """The slot of all tokens, where minds take turns; None where each request has its own."""
        self.tagged = 0
        """Tokens whose mind was set since `take_tagged`."""
        for site, norm in enumerate(norms):
            norm.register_buffer("mind_table", self.table[site], persistent=False)
            norm.register_buffer("mind_index", self.index, persistent=False)
            norm.mind_gain = None if _is_wide(norm.weight) else gain_of(norm)
            norm.__class__ = minded(type(norm))

    def write(self, offsets: bytes, count: int) -> str:
        """Make [S, count, D] float32 numbers the offsets of slots 1..count; returns the digest of what is now there."""
        shape = (self.table.shape[0], count, self.table.shape[2])
        given = torch.frombuffer(bytearray(offsets), dtype=torch.float32).reshape(shape)
        self.clear()
        self.table[:, 1 : count + 1].copy_(given)
        return digest(self.table[:, 1 : count + 1].cpu().numpy().tobytes())

    def clear(self) -> None:
        """Forget all minds."""
        self.table.zero_()

    def fill(self, slot: int | None) -> None:
        """Give all tokens of the coming batches this slot; None: each the one of its request."""
        self.fixed = slot
        self.index.fill_(slot or 0)

    def owner(self, extra: dict[str, Any] | None) -> int:
        """The slot that the `extra_args` of a request name, as `tag` takes it."""
        return NOBODY if extra is None else int(extra.get("mind", NOBODY))

    def tag(self, slots_T: NDArray[np.int64]) -> None:
        """Set the slot of each token of the coming batch; what lies beyond is padding, of no mind.

        Raises:
            ValueError: armed, and a token's request names no mind.
        """
        if self.armed and (slots_T == NOBODY).any():
            raise ValueError("a request without a mind; it did not come from ttrl_pop.sample.vllm")
        count = len(slots_T)
        self.tagged += count
        if self.fixed is not None:
            return
        # From pageable memory, which is copied before the call returns: a pinned buffer that is written again races
        # with the copy of the batch before.
        self.index[:count].copy_(torch.from_numpy(np.maximum(slots_T, 0)), non_blocking=True)
        self.index[count:].zero_()

    def take_tagged(self) -> int:
        """Tokens whose mind was set since the last call."""
        tagged, self.tagged = self.tagged, 0
        return tagged


def minded(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a norm with offsets, made from that of the norm."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = kind.forward(self, *args, **kwargs)
        normed, *rest = out if isinstance(out, tuple) else (out,)
        if self.mind_gain is not None:
            # Where there is a residual, the norm reads the sum that comes back as it.
            normed = unrounded_rms_norm(rest[0] if rest else args[0], *self.mind_gain)
        y = shifted(normed, self.mind_table, self.mind_index).to(self.weight.dtype)
        return (y, *rest) if isinstance(out, tuple) else y

    return type(f"Minded{kind.__name__}", (kind,), {"forward": forward})


def _is_wide(weight: Tensor) -> bool:
    return torch.finfo(weight.dtype).bits >= 32


def shifted(out: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """`out` [T, D] or [1, T, D] plus the offset of each token."""
    z = nn.functional.embedding(index[: out.shape[-2]], table)
    return z.add_(out).to(out.dtype) if out.dim() == 2 else (out + z).to(out.dtype)


def digest(content: bytes) -> str:
    """A short fingerprint of some bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()
