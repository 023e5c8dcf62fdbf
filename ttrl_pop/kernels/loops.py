"""What a forward without gradients does between its products, and the draw of a token behind them, as loops over
float32 on a CPU, where numba is there and vLLM is not (`ttrl_pop.kernels.loop_kernels`): one pass over memory each,
where torch makes two to seven, and of a slot no more is read than its newest token sees.

Results are torch's up to rounding, and a row's depend neither on the rows beside it nor on the number of threads.
Threads are our own: numba's would come from a second OpenMP, and take seconds to compile for.
"""

import importlib.util
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

GRAIN = 2**16
"""Numbers that a thread must find to read before another one is woken to share them."""
_NO_OFFSETS, _NO_ROWS = np.empty((0, 0), np.float32), np.empty(0, np.int64)
_NO_NORMS = (np.empty(0, np.float32), np.empty(0, np.float32), 0.0, 0.0)


def are_for(x: Tensor) -> bool:
    """Whether what is made of tensors like `x`, here and now, is made by these loops."""
    is_plain = x.dtype == torch.float32 and x.device.type == "cpu" and type(x) in (Tensor, nn.Parameter)
    if not is_plain or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return _kernels() is not None


def are_there() -> bool:
    """Whether this process has loops at all."""
    return _kernels() is not None


def attend_newest(
    queries_NHD: Float[Tensor, "N H D"],
    keys_NKD: Float[Tensor, "N K D"],
    values_NKD: Float[Tensor, "N K D"],
    held: tuple[Float[Tensor, "C K S D"], Float[Tensor, "C K S D"]],
    positions_N: Int[Tensor, "N"],
    columns: int,
    scale: float,
    window: int | None,
) -> Float[Tensor, "N H D"]:
    """Write each token's key and value to its position in the slot of its number, and let its queries see that slot up
    to there; each key head serves H / K query heads, of which the last `window` tokens are seen.

    Args:
        held: keys and values of the slots.
        columns: largest position + 1.

    Raises:
        IndexError: a position lies outside of its slot.
    """
    tokens, key_heads, width = keys_NKD.shape
    slots, *slot = held[0].shape
    _must_agree(
        "queries, keys, values and slots",
        (values_NKD.shape, keys_NKD.shape),
        (queries_NHD.shape[::2], keys_NKD.shape[::2]),
        (queries_NHD.shape[1] % key_heads, 0),
        (held[1].shape, held[0].shape),
        (slot[::2], [key_heads, width]),
        (slots >= tokens, True),
        (positions_N.shape[0], tokens),
    )
    out_NHD = _like(queries_NHD)
    given = (*map(_array, (queries_NHD, keys_NKD, values_NKD)), *(x.numpy() for x in held), _array(positions_N))
    _over(_kernels().attend, tokens * key_heads, 2 * columns * width, *given, scale, window or columns, out_NHD.numpy())
    return out_NHD


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMSNorm: x / √(mean(x²) + eps) · (weight + added)."""

    weight: Float[Tensor, "D"]
    eps: float
    added: float


Offsets = tuple[Float[Tensor, "M D"], Int[Tensor, "N"]]
"""Rows, and which of them is added to each token's states."""


def rms_norm(x: Float[Tensor, "*B D"], norm: Norm, offsets: Offsets | None = None) -> Float[Tensor, "*B D"]:
    """The norm of x, and what is added to each row of it.

    Raises:
        IndexError: there is no such row of offsets.
    """
    x_BD = x.reshape(-1, x.shape[-1])
    y_BD = _like(x_BD)
    given = *_normed_by(norm, x_BD, offsets), y_BD.numpy()
    _over(_kernels().rms_norm, *x_BD.shape, _array(x_BD), *given)
    return y_BD.view(x.shape)


def add_rms_norm(
    x_ND: Float[Tensor, "N D"], z_ND: Float[Tensor, "N D"], norm: Norm, offsets: Offsets | None
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]:
    """x + z, and its norm, as `rms_norm` has it."""
    _must_agree("what is added", (z_ND.shape, x_ND.shape))
    sum_ND, y_ND = _like(x_ND), _like(x_ND)
    given = _array(x_ND), _array(z_ND), *_normed_by(norm, x_ND, offsets)
    _over(_kernels().add_rms_norm, *x_ND.shape, *given, sum_ND.numpy(), y_ND.numpy())
    return sum_ND, y_ND


def offset_rows(
    x_ND: Float[Tensor, "N D"], offsets_MD: Float[Tensor, "M D"], row_N: Int[Tensor, "N"]
) -> Float[Tensor, "N D"]:
    """x + offsets[row].

    Raises:
        IndexError: there is no such row.
    """
    y_ND = _like(x_ND)
    given = _array(x_ND), *_added_to(x_ND, (offsets_MD, row_N))
    _over(_kernels().offset_rows, *x_ND.shape, *given, y_ND.numpy())
    return y_ND


class Columns(NamedTuple):
    """Columns of a matrix, in one piece or among others."""

    matrix: Float[Tensor, "N _"]
    first: int
    width: int

    def states(self) -> Float[Tensor, "N _"]:
        """The columns alone, on the same memory."""
        return self.matrix.narrow(1, self.first, self.width)


def open_gates(gates: Columns, ups: Columns) -> Float[Tensor, "N I"]:
    """silu(gates) ∘ ups."""
    rows = _rows_of(gates, ups)
    _must_agree("gates and what they open for", (ups.width, gates.width))
    y_NI = gates.matrix.new_empty(rows, gates.width)
    _over(_kernels().open_gates, rows, gates.width, *_given(gates), *_given(ups), y_NI.numpy())
    return y_NI


def draw(
    logits_BV: Float[Tensor, "B V"], uniforms_B: Float[Tensor, "B"], temperature: float
) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
    """A token for each row by inverse transform sampling, and its log-probability at this temperature, which is not a
    number where logits are not."""
    _must_agree("logits and uniform numbers", (uniforms_B.shape, logits_BV.shape[:1]))
    tokens_B = logits_BV.new_empty(len(logits_BV), dtype=torch.long)
    logprobs_B = logits_BV.new_empty(len(logits_BV))
    given = _array(logits_BV), _array(uniforms_B), temperature
    _over(_kernels().draw, *logits_BV.shape, *given, tokens_B.numpy(), logprobs_B.numpy())
    return tokens_B, logprobs_B


def turn(
    q: Columns,
    k: Columns,
    v: Columns,
    cos_ND: Float[Tensor, "N D"],
    sin_ND: Float[Tensor, "N D"],
    norms: tuple[Norm, Norm] | None = None,
) -> tuple[Float[Tensor, "N H D"], Float[Tensor, "N K D"], Float[Tensor, "N K D"]]:
    """Queries and keys, turned by their positions (arXiv 2104.09864), and values, each by heads and in one piece.

    Args:
        norms: of each head of the queries and of the keys before they are turned; they differ in their weights alone.
    """
    rows, width = cos_ND.shape
    _must_agree(
        "queries, keys, values and their positions",
        (_rows_of(q, k, v), rows),
        (q.width % width, 0),
        (k.width % width, 0),
        (v.width, k.width),
        (sin_ND.shape, cos_ND.shape),
        (width % 2, 0),
        *((norm.weight.shape, (width,)) for norm in norms or ()),
    )
    q_NHD, k_NKD, v_NKD = (x.matrix.new_empty(rows, x.width // width, width) for x in (q, k, v))
    of_norms = (*(_array(norm.weight) for norm in norms), norms[0].eps, norms[0].added) if norms else _NO_NORMS
    given = *_given(q), *_given(k), *_given(v), *of_norms, _array(cos_ND), _array(sin_ND)
    _over(_kernels().turn, rows, q.width + 2 * k.width, *given, q_NHD.numpy(), k_NKD.numpy(), v_NKD.numpy())
    return q_NHD, k_NKD, v_NKD


@cache
def _kernels() -> Any:
    """The loops, imported when first asked for; None where numba is not there or does not work, and beside vLLM."""
    # Its engine for CPUs (0.32) looks at an attribute of all that is in any module, and fails on one of numba's LLVM.
    if _is_installed("vllm"):
        return None
    try:
        from ttrl_pop.kernels import loop_kernels
    except ImportError:
        return None
    except Exception as error:
        # As where its LLVM does not load: nothing depends on it but time.
        warnings.warn(f"numba does not work here, and decoding is slower without it: {error}", stacklevel=2)
        return None
    return loop_kernels if loop_kernels.IS_COMPILED else None


def _is_installed(name: str) -> bool:
    try:
        found = importlib.util.find_spec(name)
    except ValueError:
        # A module that somebody put in its place.
        return True
    # A folder of that name in the working directory has no origin.
    return found is not None and found.origin is not None


def _normed_by(norm: Norm, x_ND: Tensor, offsets: Offsets | None) -> tuple[Any, ...]:
    """What loops take of a norm of these states and what is added to it."""
    _must_agree("states and weights", (norm.weight.shape, x_ND.shape[1:]))
    added = (_NO_OFFSETS, _NO_ROWS) if offsets is None else _added_to(x_ND, offsets)
    return _array(norm.weight), norm.eps, norm.added, *added


def _added_to(x_ND: Tensor, offsets: Offsets) -> tuple[Any, Any]:
    """What loops take of what is added to these states."""
    rows_MD, row_N = offsets
    _must_agree("states, rows and offsets", (rows_MD.shape[1:], x_ND.shape[1:]), (row_N.shape, x_ND.shape[:1]))
    return _array(rows_MD), _array(row_N)


def _array(x: Tensor) -> Any:
    return (x.detach() if x.requires_grad else x).contiguous().numpy()


def _rows_of(*columns: Columns) -> int:
    """How many rows they all have, of which none reaches beyond its own."""
    rows = columns[0].matrix.shape[0]
    for matrix, first, width in columns:
        is_inside = 0 <= first <= first + width <= matrix.shape[1]
        _must_agree("columns and their matrices", (matrix.shape[0], rows), (is_inside, True))
    return rows


def _given(columns: Columns) -> tuple[Any, int]:
    """What loops take of columns."""
    return _array(columns.matrix), columns.first


def _like(x: Tensor) -> Tensor:
    """Memory for as many numbers, in one piece."""
    return torch.empty_like(x, requires_grad=False, memory_format=torch.contiguous_format)


def _must_agree(what: str, *pairs: tuple[object, object]) -> None:
    """Loops do not look whether there is memory where they read."""
    for found, wanted in pairs:
        if found != wanted:
            raise ValueError(f"{what} must agree in their sizes, got {found} where {wanted} is needed")


class _Job:
    """Rows of a loop for another thread."""

    __slots__ = ("done", "error", "work")

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.error: BaseException | None = None
        self.done = Lock()
        self.done.acquire()


def _help(jobs: "SimpleQueue[_Job]") -> None:
    while True:
        job = jobs.get()
        try:
            job.work()
        except BaseException as error:
            job.error = error
        job.done.release()
        # What it holds must not live until the next one.
        del job


def _over(kernel: Callable[..., None], rows: int, width: int, *given: Any) -> None:
    """`kernel` over all rows, each of which reads some `width` numbers, dealt out to as many threads as torch has."""
    threads = min(torch.get_num_threads(), rows, rows * width // GRAIN)
    helpers = _helpers(os.getpid())
    if threads < 2 or not helpers.enough(threads - 1):
        kernel(*given, 0, rows)
        return
    bounds = [(rows * number // threads, rows * (number + 1) // threads) for number in range(threads)]
    jobs = [_Job(partial(kernel, *given, *bound)) for bound in bounds[1:]]
    for job in jobs:
        helpers.jobs.put(job)
    try:
        kernel(*given, *bounds[0])
    finally:
        # Also where this thread's own part fails: they write to memory of the caller.
        for job in jobs:
            job.done.acquire()
    for job in jobs:
        if job.error is not None:
            raise job.error


class _Helpers:
    """Threads of this process that take jobs, whoever asks; they stay for the next loop."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        self._count = 0

    def enough(self, count: int) -> bool:
        """Whether there is a thread to take jobs, after having seen to so many."""
        while self._count < count:
            try:
                Thread(target=_help, args=(self.jobs,), name="ttrl-pop-loops", daemon=True).start()
            except RuntimeError:
                # No more are allowed: those that there are take all jobs.
                break
            self._count += 1
        return self._count > 0


@cache
def _helpers(process: int) -> _Helpers:
    """Threads of a process: a fork has none of its parent's."""
    return _Helpers()
