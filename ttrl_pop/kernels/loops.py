"""What a forward without gradients does between its products, as loops over float32 on a CPU, where numba is there
(`ttrl_pop.kernels.loop_kernels`): one pass over memory each, where torch makes two to seven, and of a slot no more is
read than its newest token sees.

Results are torch's up to rounding, and a row's depend neither on the rows beside it nor on the number of threads.
Threads are our own: numba's would come from a second OpenMP, and take seconds to compile for.
"""

import importlib.util
import os
from collections.abc import Callable
from functools import cache, partial
from threading import Lock, Thread
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

GRAIN = 2**16
"""Numbers that a thread must find to read before another one is woken to share them."""


def are_for(x: Tensor) -> bool:
    """Whether what is made of tensors like `x`, here and now, is made by these loops."""
    is_plain = x.dtype == torch.float32 and x.device.type == "cpu"
    return is_plain and not torch.is_grad_enabled() and _kernels() is not None


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
    out_NHD = _like(queries_NHD)
    given = (*map(_array, (queries_NHD, keys_NKD, values_NKD)), *(x.numpy() for x in held), _array(positions_N))
    _over(_kernels().attend, tokens * key_heads, 2 * columns * width, *given, scale, window or columns, out_NHD.numpy())
    return out_NHD


def rms_norm(x: Float[Tensor, "*B D"], weight: Float[Tensor, "D"], eps: float, added: float) -> Float[Tensor, "*B D"]:
    """x / √(mean(x²) + eps) · (weight + added)."""
    x_BD = x.reshape(-1, x.shape[-1])
    y_BD = _like(x_BD)
    _over(_kernels().rms_norm, *x_BD.shape, _array(x_BD), _array(weight), eps, added, y_BD.numpy())
    return y_BD.view(x.shape)


def offset_rows(
    x_ND: Float[Tensor, "N D"], offsets_MD: Float[Tensor, "M D"], row_N: Int[Tensor, "N"]
) -> Float[Tensor, "N D"]:
    """x + offsets[row].

    Raises:
        IndexError: there is no such row.
    """
    y_ND = _like(x_ND)
    _over(_kernels().offset_rows, *x_ND.shape, *map(_array, (x_ND, offsets_MD, row_N)), y_ND.numpy())
    return y_ND


def open_gates(gates_NI: Float[Tensor, "N I"], ups_NI: Float[Tensor, "N I"]) -> Float[Tensor, "N I"]:
    """silu(gates) ∘ ups, in the memory of `gates`."""
    _over(_kernels().open_gates, *gates_NI.shape, gates_NI.numpy(), _array(ups_NI))
    return gates_NI


def rotate(
    q_1HND: Float[Tensor, "1 H N D"],
    k_1KND: Float[Tensor, "1 K N D"],
    cos_1ND: Float[Tensor, "1 N D"],
    sin_1ND: Float[Tensor, "1 N D"],
) -> tuple[Float[Tensor, "1 H N D"], Float[Tensor, "1 K N D"]]:
    """Queries and keys turned by their positions. In memory they lie token by token, as attention reads them."""
    q_NHD, k_NKD = (x[0].transpose(0, 1) for x in (q_1HND, k_1KND))
    turned_NHD, turned_NKD = _like(q_NHD), _like(k_NKD)
    tokens, heads, width = q_NHD.shape
    given = map(_array, (q_NHD, k_NKD, cos_1ND[0], sin_1ND[0]))
    _over(_kernels().rotate, tokens, heads * width, *given, turned_NHD.numpy(), turned_NKD.numpy())
    return turned_NHD.transpose(0, 1)[None], turned_NKD.transpose(0, 1)[None]


@cache
def _kernels() -> Any:
    """The loops, imported when first asked for; None where numba is not there or not for this numpy, and beside
    vLLM."""
    # Its engine for CPUs (0.32) looks at an attribute of all that is in any module, and fails on one of numba's LLVM.
    if importlib.util.find_spec("vllm") is not None:
        return None
    try:
        from ttrl_pop.kernels import loop_kernels
    except ImportError:
        return None
    return loop_kernels


def _array(x: Tensor) -> Any:
    return (x.detach() if x.requires_grad else x).contiguous().numpy()


def _like(x: Tensor) -> Tensor:
    """Memory for as many numbers, in one piece."""
    return torch.empty_like(x, requires_grad=False, memory_format=torch.contiguous_format)


class _Helper:
    """A thread that does one job at a time beside the thread that asks for it."""

    def __init__(self) -> None:
        self._asked, self._done = Lock(), Lock()
        self._asked.acquire()
        self._done.acquire()
        self._job: Callable[[], None] | None = None
        self._error: BaseException | None = None
        Thread(target=self._work, name="ttrl-pop-loops", daemon=True).start()

    def begin(self, job: Callable[[], None]) -> None:
        self._job = job
        self._asked.release()

    def end(self) -> None:
        """Wait for the job, and raise what it has raised."""
        self._done.acquire()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _work(self) -> None:
        while True:
            self._asked.acquire()
            assert self._job is not None
            try:
                self._job()
            except BaseException as error:
                self._error = error
            # What the job holds must not live until the next one.
            self._job = None
            self._done.release()


_IN_USE = Lock()


def _over(kernel: Callable[..., None], rows: int, width: int, *given: Any) -> None:
    """`kernel` over all rows, each of which reads some `width` numbers, dealt out to as many threads as torch has."""
    threads = min(torch.get_num_threads(), rows, rows * width // GRAIN)
    # Of two callers at the same time one does without helpers.
    if threads < 2 or not _IN_USE.acquire(blocking=False):
        kernel(*given, 0, rows)
        return
    try:
        helpers = _helpers(os.getpid(), threads - 1)
        for number, helper in enumerate(helpers):
            helper.begin(partial(kernel, *given, rows * number // threads, rows * (number + 1) // threads))
        kernel(*given, rows * len(helpers) // threads, rows)
        for helper in helpers:
            helper.end()
    except BaseException:
        # One of them may still be at its job, as after Ctrl-C: the next call takes others.
        _helpers.cache_clear()
        raise
    finally:
        _IN_USE.release()


@cache
def _helpers(process: int, number: int) -> list[_Helper]:
    """Helpers of this process: a fork has none of its parent's threads."""
    return [_Helper() for _ in range(number)]
