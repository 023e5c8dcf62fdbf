"""Float32 products on a CPU by the library that is fastest on its processor.

torch on x86 has two libraries for them, and takes MKL by itself. On Intel's processors that is right; on AMD's, oneDNN
takes 0.4 to 0.9 of MKL's time (dev/LOG.md). The processor decides, not a measurement, so that a run that is resumed
computes the same bits.

Both copy a weight into the order in which it is read before they multiply by it. At the width of a decode step that is
a third of the time, so what is multiplied often can be laid out once (`lay_out`): by oneMKL's `cblas_sgemm_pack` and
`cblas_sgemm_compute`, or by oneDNN's blocked weights.
"""

import ctypes
import mmap
import platform
import resource
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

LAYOUT_ROWS = 256
"""Rows for which the layout is chosen. Products of any number are right, and as fast as by a layout for them."""
CPUINFO = Path("/proc/cpuinfo")
# Constants in cblas.h and mkl_cblas.h.
_ROW_MAJOR, _NO_TRANSPOSE, _TRANSPOSE, _PACKED, _RIGHT_SIDE = 101, 111, 112, 151, 162


@dataclass(frozen=True, slots=True)
class Mkl:
    """The functions of MKL that are used, with the arguments that the oneMKL reference gives."""

    size: Callable[..., int]
    pack: Callable[..., None]
    compute: Callable[..., None]


class LaidOutWeight(ABC):
    """A weight and a copy of it in a library's order, which is made anew once the weight has been changed in place."""

    def __init__(self, weight: Float[Tensor, "O I"]) -> None:
        """
        Raises:
            ValueError: the weight is of another kind than can be laid out.
        """
        if not _is_plain(weight):
            raise ValueError(f"only contiguous float32 on a CPU is laid out, got {weight.dtype}, {weight.device}")
        self.weight = weight
        self._laid_out_at = -1

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
            raise TypeError(
                f"a product with a weight that is laid out takes float32 on the CPU, got {x.dtype} on {x.device}"
            )
        # Asked some hundred times a token: a look at the length of a tensor takes a microsecond, one at its shape none.
        if 0 in x.shape:
            return x.new_empty(*x.shape[:-1], outputs)
        rows = x.detach().reshape(-1, inputs).contiguous()
        if self.weight._version != self._laid_out_at:
            self._lay_out()
            self._laid_out_at = self.weight._version
        y = self._product(rows, None if bias is None else bias.detach())
        return y if x.ndim == 2 else y.view(*x.shape[:-1], outputs)

    def renew(self) -> None:
        """Have the copy made anew before the next product: its memory was written to by another name."""
        self._laid_out_at = -1

    @abstractmethod
    def _lay_out(self) -> None: ...

    @abstractmethod
    def _product(self, x: Float[Tensor, "N I"], bias: Float[Tensor, "O"] | None) -> Float[Tensor, "N O"]: ...


class MklWeight(LaidOutWeight):
    """A weight in MKL's order.

    torch has an operation for this too, meant for its compiler, but that cannot lay a weight out again in the same
    memory, so MKL's functions are called in torch's own library."""

    def __init__(self, weight: Float[Tensor, "O I"]) -> None:
        """
        Raises:
            ValueError: torch has no MKL, or the weight is of another kind than can be laid out.
            OSError: the address space does not suffice.
        """
        super().__init__(weight)
        mkl = _mkl()
        if mkl is None:
            raise ValueError("torch's library has no MKL here")
        self._mkl = mkl
        # MKL wants several times a small weight and leaves most of that untouched: only what it touches takes memory.
        self._memory = mmap.mmap(-1, mkl.size(_RIGHT_SIDE, LAYOUT_ROWS, *weight.shape))
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def _lay_out(self) -> None:
        outputs, inputs = self.weight.shape
        self._mkl.pack(
            *(_ROW_MAJOR, _RIGHT_SIDE, _TRANSPOSE, LAYOUT_ROWS, outputs, inputs),
            *(1.0, self.weight.data_ptr(), inputs, self._address),
        )

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        outputs, inputs = self.weight.shape
        y = x.new_empty(len(x), outputs)
        if bias is not None:
            y.copy_(bias)
        self._mkl.compute(
            *(_ROW_MAJOR, _NO_TRANSPOSE, _PACKED, len(x), outputs, inputs),
            *(x.data_ptr(), inputs, self._address, inputs),
            *(0.0 if bias is None else 1.0, y.data_ptr(), outputs),
        )
        return y


class OneDnnWeight(LaidOutWeight):
    """A weight in oneDNN's order, by the operations that torch's compiler has for it."""

    _blocked: Tensor | None = None

    def _lay_out(self) -> None:
        # First the old copy goes, then the new one takes its memory.
        self._blocked = None
        self._blocked = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), LAYOUT_ROWS)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        assert self._blocked is not None
        return _onednn_product(x, self.weight, self._blocked, bias)


def lay_out(weight: Float[Tensor, "O I"]) -> LaidOutWeight | None:
    """`weight` laid out for products; None where that is not known to be right and faster, or there is no room."""
    kind = _kind()
    if kind is None or not _is_plain(weight):
        return None
    try:
        return kind(weight)
    except OSError:
        return None


def is_laid_out(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether matrices of this type on this device are laid out here, where there is room."""
    return dtype == torch.float32 and device.type == "cpu" and _kind() is not None


def layout_bytes(weight: Float[Tensor, "O I"]) -> int:
    """Bytes that a layout of `weight` takes: as many as itself; under a limit on address space (`ulimit -v`) all that
    MKL wants."""
    if _kind() is MklWeight and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        mkl = _mkl()
        assert mkl is not None
        return mkl.size(_RIGHT_SIDE, LAYOUT_ROWS, *weight.shape)
    return weight.numel() * weight.element_size()


def product(
    x: Float[Tensor, "N I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, "O"] | None = None
) -> Float[Tensor, "N O"]:
    """x·Wᵀ + b of matrices as they lie, without gradient."""
    is_float32 = x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
    if is_float32 and x.numel() and _kind() is OneDnnWeight:
        return _onednn_product(x.detach(), weight, weight.detach(), bias)
    return nn.functional.linear(x, weight, bias)


def _onednn_product(x: Tensor, weight: Tensor, laid_out: Tensor, bias: Tensor | None) -> Tensor:
    try:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, laid_out, bias, "none", [], "")
    except RuntimeError as error:
        if "could not create a primitive" not in str(error):
            raise
    else:
        return y
    # Once it has found no room for its code, oneDNN makes none for new shapes any more, however much room there is
    # (dev/LOG.md).
    return nn.functional.linear(x, weight.detach(), bias)


def _is_plain(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous() and weight.ndim == 2


@cache
def _kind() -> type[LaidOutWeight] | None:
    """How weights are laid out here; None where no way is known, or its products are not those of torch."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    told = CPUINFO.read_text() if CPUINFO.exists() else platform.processor()
    kinds: dict[str, type[LaidOutWeight]] = {"GenuineIntel": MklWeight, "AuthenticAMD": OneDnnWeight}
    return next((kind for vendor, kind in kinds.items() if vendor in told and _is_right(kind)), None)


@cache
def _mkl() -> Mkl | None:
    """MKL's functions in torch's library; None where it has no MKL, as on ARM and on macOS."""
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


def _is_right(kind: type[LaidOutWeight]) -> bool:
    # Whatever type and device are the default where this is first asked, as while an engine loads its model.
    like: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    weight, bias = torch.linspace(-1, 2, 33 * 17, **like).view(33, 17), torch.linspace(0, 1, 33, **like)
    x = torch.linspace(-3, 1, 300 * 17, **like).view(300, 17)
    try:
        laid_out = kind(weight)
        pairs = [(laid_out.times(x[:rows], bias), nn.functional.linear(x[:rows], weight, bias)) for rows in (1, 5, 300)]
    except (ValueError, OSError, RuntimeError, AttributeError):
        # This torch has no such library, or no such operations.
        return False
    return all(torch.allclose(got, expected, rtol=1e-5, atol=1e-5) for got, expected in pairs)
