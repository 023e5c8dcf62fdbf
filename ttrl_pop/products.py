"""Products with a weight that is laid out for them once.

A float32 product on a CPU first copies its weight into the order in which it is read. At the width of a decode step
that is a third of the time. MKL, which torch has on x86, can be handed a weight in that order (oneMKL's
`cblas_sgemm_pack` and `cblas_sgemm_compute`). torch has an operation for this too, meant for its compiler, but that
cannot lay a weight out again in the same memory, so the two functions are called in torch's own library, where it has
them.
"""

import ctypes
import mmap
import resource
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

PACKED_ROWS = 256
"""For which the order is chosen. Products of any number of rows are right, and as fast as by an order for them."""
# Of cblas.h and mkl_cblas.h.
_ROW_MAJOR, _NO_TRANSPOSE, _TRANSPOSE, _PACKED, _RIGHT_SIDE = 101, 111, 112, 151, 162


@dataclass(frozen=True, slots=True)
class Mkl:
    """The functions of MKL that are used, with the arguments that the oneMKL reference gives."""

    size: Callable[..., int]
    pack: Callable[..., None]
    compute: Callable[..., None]


class PackedWeight:
    """A weight and a copy of it in MKL's order, which is made anew once the weight has been changed in place."""

    def __init__(self, weight: Float[Tensor, "O I"]) -> None:
        """
        Raises:
            ValueError: there is no such copy of this weight (`can_be_packed`).
        """
        mkl = _mkl()
        if mkl is None or not _is_plain(weight):
            raise ValueError(
                f"only contiguous float32 on a CPU with MKL is packed, got {weight.dtype}, {weight.device}"
            )
        self.weight = weight
        self._mkl = mkl
        self._packed_at = -1
        # MKL wants several times a small weight and leaves most of that untouched: only what it touches takes memory.
        self._memory = mmap.mmap(-1, mkl.size(_RIGHT_SIDE, PACKED_ROWS, *weight.shape))
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def times(self, x: Float[Tensor, "*B I"], bias: Float[Tensor, "O"] | None) -> Float[Tensor, "*B O"]:
        """x·Wᵀ + b, without gradient.

        Raises:
            TypeError: `x` is not float32 on the CPU.
            ValueError: `x` is of another width than W. MKL would read what lies behind it.
        """
        outputs, inputs = self.weight.shape
        if x.shape[-1] != inputs:
            raise ValueError(
                f"a product with a weight of {outputs} x {inputs} takes rows of {inputs}, got {x.shape[-1]}"
            )
        if x.dtype != torch.float32 or x.device.type != "cpu":
            raise TypeError(f"a packed product takes float32 on the CPU, got {x.dtype} on {x.device}")
        if self.weight._version != self._packed_at:
            self._pack()
        given = x.detach().contiguous()
        rows = given.numel() // inputs
        shape = (*x.shape[:-1], outputs)
        y = given.new_empty(shape)
        if bias is not None:
            y.copy_(bias.detach())
        if rows:
            self._mkl.compute(
                *(_ROW_MAJOR, _NO_TRANSPOSE, _PACKED, rows, outputs, inputs),
                *(given.data_ptr(), inputs, self._address, inputs),
                *(0.0 if bias is None else 1.0, y.data_ptr(), outputs),
            )
        return y

    def _pack(self) -> None:
        outputs, inputs = self.weight.shape
        self._mkl.pack(
            *(_ROW_MAJOR, _RIGHT_SIDE, _TRANSPOSE, PACKED_ROWS, outputs, inputs),
            *(1.0, self.weight.data_ptr(), inputs, self._address),
        )
        self._packed_at = self.weight._version


def can_be_packed(weight: Tensor) -> bool:
    """Whether there is a `PackedWeight` of this weight, and it computes what it should."""
    return _is_plain(weight) and _mkl() is not None and _is_right()


def packed_bytes(weight: Float[Tensor, "O I"]) -> int:
    """What packing `weight` takes: its own size; under a limit on address space (`ulimit -v`) all that MKL wants."""
    mkl = _mkl()
    if mkl is not None and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return mkl.size(_RIGHT_SIDE, PACKED_ROWS, *weight.shape)
    return weight.numel() * weight.element_size()


def _is_plain(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous() and weight.ndim == 2


@cache
def _mkl() -> Mkl | None:
    """None where torch's library has no MKL, as on ARM and on macOS."""
    number, pointer, real = ctypes.c_int, ctypes.c_void_p, ctypes.c_float
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        size, pack, compute = (library[f"cblas_sgemm_{name}"] for name in ("pack_get_size", "pack", "compute"))
    except (OSError, AttributeError):
        return None
    size.argtypes, size.restype = [number] * 4, ctypes.c_size_t
    pack.argtypes, pack.restype = [*[number] * 6, real, pointer, number, pointer], None
    compute.argtypes = [*[number] * 6, pointer, number, pointer, number, real, pointer, number]
    compute.restype = None
    return Mkl(size, pack, compute)


@cache
def _is_right() -> bool:
    # Whatever type and device are the default where this is first asked, as while an engine loads its model.
    like: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    weight, bias = torch.linspace(-1, 2, 33 * 17, **like).view(33, 17), torch.linspace(0, 1, 33, **like)
    x = torch.linspace(-3, 1, 300 * 17, **like).view(300, 17)
    packed = PackedWeight(weight)
    pairs = [(packed.times(x[:rows], bias), nn.functional.linear(x[:rows], weight, bias)) for rows in (1, 5, 300)]
    return all(torch.allclose(got, expected, rtol=1e-5, atol=1e-5) for got, expected in pairs)
