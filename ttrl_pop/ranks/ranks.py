"""How processes of one run talk: torch.distributed, with gloo between CPUs and NCCL between GPUs.

`ALONE` is a process without others, for which all of it is nothing to do; so no other code asks how many there are.
What is sent is pickled: the processes of a job trust each other, and its ports belong inside of a network that does.
"""

import json
import os
import pickle
import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ttrl_pop.errors import RankError
from ttrl_pop.ranks import launched, shards

Value = TypeVar("Value")

MEETING = timedelta(minutes=30)
"""How long a process waits for the others to begin."""

PATIENCE = timedelta(days=7)
"""How long it then waits for one that is alive; one that dies is noticed at once."""

SIGNAL_ON_ITS_WAY = 1.0
"""Seconds to wait, after another process has ended, for the signal that may have ended it."""

LAST_WORD = "ttrl-pop/last-word"
NAME = "ttrl-pop/name"


class Ranks:
    """A process alone; several are a `Group`."""

    rank = 0
    """Number of this process; the first, 0, leads."""
    size = 1
    """How many there are."""
    name = ""
    """A word that several of them share and no other run has; empty where one is alone."""
    held: bytes | None = None
    """Digest of the trained weights that the others hold, as the first one knows it."""

    @property
    def leads(self) -> bool:
        """Whether this is the first of several."""
        return self.size > 1 and self.rank == 0

    def owned(self, count: int) -> range:
        """The shards, of `count`, that this process works on."""
        return shards.owned(self.rank, self.size, count)

    def tell(self, message: Any) -> None:
        """Send to all others, from the first."""

    def hear(self) -> Any:
        """What the first has told."""
        raise RuntimeError("nobody tells a process anything that is alone")

    def exchange(self, value: Value) -> list[Value]:
        """Everybody's value, in the order of ranks."""
        return [value]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Make the first's tensors the sums over all processes, in the tree of shards; the others' are used up."""

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Give all others the first's tensors, in place."""


ALONE = Ranks()

_joined: Ranks = ALONE


def current() -> Ranks:
    """The processes that this one works with."""
    return _joined


class Group(Ranks):
    """Several processes, of which this is one."""

    def __init__(self, rank: int, size: int, store: Any) -> None:
        self.rank = rank
        self.size = size
        self.name = store.compare_set(NAME, "", secrets.token_hex(8)).decode()
        self._store = store

    def tell(self, message: Any) -> None:
        self._broadcast([pickle.dumps(message)])

    def hear(self) -> Any:
        return pickle.loads(self._broadcast([None]))

    def _broadcast(self, payload: list[Any]) -> bytes:
        with self._talking():
            dist.broadcast_object_list(payload, src=0, device=torch.device("cpu"))
        found: bytes = payload[0]
        return found

    def exchange(self, value: Value) -> list[Value]:
        own = pickle.dumps(value)
        found: list[Any] = [None] * self.size
        with self._talking():
            dist.all_gather_object(found, own)
        return [value if rank == self.rank else pickle.loads(each) for rank, each in enumerate(found)]

    def add(self, tensors: Sequence[Tensor]) -> None:
        for low, middle, _ in reversed(shards.splits(self.rank, self.size)):
            if self.rank == middle:
                packed = _packed(tensors)
                with self._talking():
                    dist.send(packed, low)
            elif self.rank == low:
                packed = _space_for(tensors)
                with self._talking():
                    dist.recv(packed, middle)
                for own, other in zip(tensors, _unpacked(packed, tensors), strict=True):
                    own.add_(other)

    @torch.no_grad()
    def spread(self, tensors: Sequence[Tensor]) -> None:
        packed = _packed(tensors) if self.rank == 0 else _space_for(tensors)
        with self._talking():
            dist.broadcast(packed, src=0)
        if self.rank == 0:
            return
        for own, new in zip(tensors, _unpacked(packed, tensors), strict=True):
            own.copy_(new)

    def leave(self, code: int, text: str = "") -> None:
        """End this process's part: well, with code 0, or leaving word of why for those who wait for it.

        Args:
            text: what went wrong, in a line; empty where it has been told.
        """
        if code == 0:
            if self.rank == 0:
                with suppress(RankError):
                    self.tell(None)
            dist.destroy_process_group()
            return
        # Where the store is gone there is nobody who could read it.
        with suppress(RuntimeError):
            self._store.compare_set(LAST_WORD, "", json.dumps([code, text]))

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """A talk that may fail.

        Raises:
            RankError: another process has ended.
        """
        try:
            yield
        except RuntimeError as error:
            raise self._loss() from error

    def _loss(self) -> RankError:
        with suppress(RuntimeError):
            if self._store.check([LAST_WORD]):
                code, text = json.loads(self._store.get(LAST_WORD))
                # Whoever started all this now ends it: what has been done is saved first.
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)
                return RankError(text or "another process of this run has ended", code)
        time.sleep(SIGNAL_ON_ITS_WAY)
        return RankError("another process of this run was killed, or its machine is gone")


def join() -> Group:
    """Meet the other processes, as the environment says, and see no more than this one's GPU from now on.

    Comes before anything looks for a GPU.
    """
    global _joined
    _take_own_gpu(launched.place_on_machine())
    store, rank, size = next(rendezvous("env://", timeout=MEETING))
    kinds = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(kinds, store=PrefixStore("group", store), rank=rank, world_size=size, timeout=PATIENCE)
    launched.forget()
    _joined = Group(rank, size, store)
    return _joined


def _take_own_gpu(local: int) -> None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(local)
    elif len(several := visible.split(",")) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = several[local % len(several)]


def _packed(tensors: Sequence[Tensor]) -> Tensor:
    """All bytes in one tensor."""
    return torch.cat([tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in tensors])


def _space_for(tensors: Sequence[Tensor]) -> Tensor:
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return torch.empty(size, dtype=torch.uint8, device=tensors[0].device)


def _unpacked(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    sizes = [tensor.numel() * tensor.element_size() for tensor in like]
    # A copy begins where any type may begin.
    parts = (part.clone() for part in torch.split(packed, sizes))
    return [part.view(tensor.dtype).view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]
