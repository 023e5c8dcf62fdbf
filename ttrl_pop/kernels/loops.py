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
from functools import cache, partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

GRAIN = 2**16
"""Numbers that a thread must find to read before another one is woken to share them."""


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
        (len(positions_N), tokens),
    )
    out_NHD = _like(queries_NHD)
    given = (*map(_array, (queries_NHD, keys_NKD, values_NKD)), *(x.numpy() for x in held), _array(positions_N))
    _over(_kernels().attend, tokens * key_heads, 2 * columns * width, *given, scale, window or columns, out_NHD.numpy())
    return out_NHD


def rms_norm(x: Float[Tensor, "*B D"], weight: Float[Tensor, "D"], eps: float, added: float) -> Float[Tensor, "*B D"]:
    """x / √(mean(x²) + eps) · (weight + added)."""
    _must_agree("states and weights", (weight.shape, x.shape[-1:]))
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
    _must_agree("states, rows and offsets", (offsets_MD.shape[1:], x_ND.shape[1:]), (row_N.shape, x_ND.shape[:1]))
    y_ND = _like(x_ND)
    _over(_kernels().offset_rows, *x_ND.shape, *map(_array, (x_ND, offsets_MD, row_N)), y_ND.numpy())
    return y_ND


def open_gates(gates_NI: Float[Tensor, "N I"], ups_NI: Float[Tensor, "N I"]) -> Float[Tensor, "N I"]:
    """silu(gates) ∘ ups, in the memory of `gates`. Rows of either may lie apart."""
    _must_agree("gates and what they open for", (ups_NI.shape, gates_NI.shape))
    gates_NI = _in_rows(gates_NI)
    _over(_kernels().open_gates, *gates_NI.shape, gates_NI.shape[1], *_flat(gates_NI), *_flat(_in_rows(ups_NI)))
    return gates_NI


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


def rotate(
    q_1HND: Float[Tensor, "1 H N D"],
    k_1KND: Float[Tensor, "1 K N D"],
    cos_1ND: Float[Tensor, "1 N D"],
    sin_1ND: Float[Tensor, "1 N D"],
) -> tuple[Float[Tensor, "1 H N D"], Float[Tensor, "1 K N D"]]:
    """Queries and keys turned by their positions. In memory they lie token by token, as attention reads them."""
    _must_agree(
        "queries, keys and their positions",
        (k_1KND.shape[::2], q_1HND.shape[::2]),
        (k_1KND.shape[3], q_1HND.shape[3]),
        (cos_1ND.shape, q_1HND.shape[:1] + q_1HND.shape[2:]),
        (sin_1ND.shape, cos_1ND.shape),
    )
    q_NHD, k_NKD = (x[0].transpose(0, 1) for x in (q_1HND, k_1KND))
    turned_NHD, turned_NKD = _like(q_NHD), _like(k_NKD)
    tokens, heads, width = q_NHD.shape
    given = map(_array, (q_NHD, k_NKD, cos_1ND[0], sin_1ND[0]))
    _over(_kernels().rotate, tokens, heads * width, *given, turned_NHD.numpy(), turned_NKD.numpy())
    return turned_NHD.transpose(0, 1)[None], turned_NKD.transpose(0, 1)[None]


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


def _array(x: Tensor) -> Any:
    return (x.detach() if x.requires_grad else x).contiguous().numpy()


def _in_rows(x_NI: Float[Tensor, "N I"]) -> Float[Tensor, "N I"]:
    """The same numbers, each row in one piece."""
    return x_NI.detach() if x_NI.stride(1) == 1 else x_NI.detach().contiguous()


def _flat(x_NI: Float[Tensor, "N I"]) -> tuple[Any, int]:
    """Rows as they follow each other in memory, with what lies between, and how far one begins behind the other."""
    (rows, width), apart = x_NI.shape, x_NI.stride(0)
    return x_NI.as_strided(((rows - 1) * apart + width if rows else 0,), (1,)).numpy(), apart


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
