"""A decode step of all rollouts by itself: what a token costs once prompts are read and the step is recorded."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import ours
from dev.gpu.rows import Row
from ttrl_pop.run.session import Session
from ttrl_pop.sample.hf.decode import DecodeStep


@dataclass(frozen=True, slots=True)
class Held:
    """A step that can be repeated: behind their last tokens rollouts stay where they are."""

    step: DecodeStep
    rows: int
    columns: int


class _SeenError(Exception):
    """Sampling has come to the step, and need not go on."""


def at_step(session: Session, work: Callable[[Held], None]) -> None:
    """Do something with the step as the backend makes it, a few tokens behind the prompts and while it is sampling, as
    adapters may lie otherwise then; recorded where the backend records."""
    backend = session.backend
    decode: Any = backend._decode

    def watched(active: Any, cache: Any, graphs: Any) -> Any:
        decode(active, cache, graphs)
        count, columns = len(active), cache.longest
        minds = [writing.request.mind for writing in active if writing.request.mind is not None]
        if graphs is None:
            step = DecodeStep(backend.policy, cache, [*dict.fromkeys(minds)], backend._draw_all, count, columns)
        else:
            step = graphs.step(count, columns)
        known = {mind: place for place, mind in enumerate(step.minds_M)}
        step.load(
            tokens=[writing.ids[-1] for writing in active],
            positions=[writing.length - 1 for writing in active],
            ends=[columns - 2] * count,
            minds=[known[mind] for mind in minds] or [0] * count,
        )
        with torch.no_grad():
            # The second call of a step that is recorded repeats what the first has left.
            step()
            step()
            work(Held(step, count, columns))
        raise _SeenError

    backend._decode = watched
    try:
        with suppress(_SeenError):
            ours.sampled_groups(session, 1)
    finally:
        backend._decode = decode


def seconds_of(work: Callable[[], Any], repeats: int, device: str) -> float:
    """Seconds of one of so many calls in a row, by the device's own clock where it has one."""
    if device == "cpu":
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        return (time.perf_counter() - began) / repeats
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / repeats


def floor(session: Session, held: Held, machine: Row) -> Row:
    """What one step cannot do without: bytes of weights, keys and values, FLOPs of products with weights; and the
    seconds of the slower of the two at the rates that the machine attains."""
    layers, head = weights(session)
    moved = (layers + head.numel()) * head.element_size()
    moved += held.rows * held.columns * session.policy.cache_bytes_per_token
    flops = 2 * held.rows * (layers + head.numel())
    seconds = max(moved / machine["bytes_per_second"], flops / machine["flops_per_second"])
    return {"bytes": moved, "flops": flops, "floor": seconds}


def weights(session: Session) -> tuple[int, torch.Tensor]:
    """Numbers of the frozen matrices of all layers, and the matrix of the LM head."""
    network = session.policy.network
    layers = sum(
        p.numel() for name, p in network.named_parameters() if p.ndim == 2 and "layers" in name and "lora" not in name
    )
    return layers, network.get_output_embeddings().weight
