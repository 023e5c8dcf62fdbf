"""One adapter for all tokens of a batch, on a CPU.

vLLM's form for CPUs gathers the adapter's weights anew for every token, since each may have another adapter: more
memory traffic than the model itself. Here all requests of a batch have the policy's adapter or none has one, so two
plain products do.
"""

from typing import Any

from torch import Tensor


def share_products(runner: Any) -> None:
    """Let the adapters of `runner` be multiplied with whole batches."""
    manager = runner.lora_manager._adapter_manager
    for wrapper in {id(w): w for w in manager.punica_wrapper_mapping.values()}.values():
        wrapper.__class__ = sharing(type(wrapper))


def sharing(kind: type[Any]) -> type[Any]:
    """The class of vLLM's products with adapters that takes all rows to have the first one, or none."""

    def add_lora_linear(
        self: Any,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """Add scale · x Aᵀ Bᵀ to the slices of y [T, out] for x [T, in], A [1, 1, rank, in], B [1, 1, out, rank]."""
        if self.no_lora:
            return
        rows, sums = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        left = 0
        for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            inner = (rows @ a[0, 0].T).mul_(scale)
            sums[:, left : left + width].addmm_(inner, b[0, 0].T)
            left += width

    return type(f"Sharing{kind.__name__}", (kind,), {"add_lora_linear": add_lora_linear})
