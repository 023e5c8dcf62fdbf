"""What tests of several processes share: engines by which one of them fails, and a count of what they send."""

import gc
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from ttrl_pop.errors import UsageError
from ttrl_pop.model.policy import Policy
from ttrl_pop.ranks.ranks import current
from ttrl_pop.sample.backend import Request, Weights
from ttrl_pop.sample.hf.backend import HfBackend
from ttrl_pop.types import Rollout


class Failing(HfBackend):
    """An engine with which the second process does something after the first update."""

    def fail(self) -> None:
        raise NotImplementedError

    def rollouts(self, requests: Sequence[Request], weights: Weights = "policy") -> Iterator[tuple[int, Rollout]]:
        if current().rank == 1 and self.policy.version == 1:
            self.fail()
        return super().rollouts(requests, weights)


class Refusing(Failing):
    def fail(self) -> None:
        raise UsageError("not with me")


class Broken(Failing):
    def fail(self) -> None:
        raise KeyError("gone")


class Killed(Failing):
    def fail(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Changed(Failing):
    """The second process's weights become others than the first's."""

    def fail(self) -> None:
        with torch.no_grad():
            next(iter(self.policy.adapter_parameters().values())).add_(1e-3)


class Slow(HfBackend):
    """Says that the third step has begun and, where the environment says so, takes its time for it."""

    def rollouts(self, requests: Sequence[Request], weights: Weights = "policy") -> Iterator[tuple[int, Rollout]]:
        if self.policy.version == 2 and "TTRL_POP_SLOW" in os.environ:
            print("third", file=sys.stderr, flush=True)
            time.sleep(3)
        return super().rollouts(requests, weights)


class Lone(HfBackend):
    """An engine that is started where no model but its own is in memory."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if (count := sum(type(thing) is Policy for thing in gc.get_objects())) > 1:
            raise UsageError(f"{count} models stand side by side")


class Counted(HfBackend):
    """Says at each step how many bytes of tensors and of messages this process has sent, and how many torch.distributed
    was given to send, whoever gave them."""

    tensors = messages = wire = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.watch(dist, "send", "tensors", lambda tensor, to: tensor.nbytes)
        self.watch(dist, "broadcast", "tensors", lambda tensor, src: tensor.nbytes * (current().rank == 0))
        self.watch(dist, "all_gather_object", "messages", lambda found, own: len(own))
        self.watch(dist, "broadcast_object_list", "messages", lambda own, **more: len(own[0] or b""))
        # What all functions of torch.distributed come down to.
        group = dist.ProcessGroup
        self.watch(group, "send", "wire", lambda group, tensors, *to: nbytes(tensors))
        self.watch(group, "broadcast", "wire", lambda group, tensors, root: nbytes(tensors) * (group.rank() == 0))
        self.watch(group, "allgather", "wire", lambda group, found, tensors, *more: nbytes(tensors))
        for name in ("allreduce", "reduce", "gather", "scatter", "reduce_scatter", "alltoall", "alltoall_base"):
            self.watch(group, name, "wire", uncounted)
        for name in ("allgather_coalesced", "allreduce_coalesced", "_allgather_base", "_reduce_scatter_base"):
            self.watch(group, name, "wire", uncounted)

    @classmethod
    def watch(cls, owner: Any, name: str, kind: str, size: Any) -> None:
        function = getattr(owner, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            setattr(cls, kind, getattr(cls, kind) + size(*arguments, **named))
            return function(*arguments, **named)

        setattr(owner, name, counted)

    def rollouts(self, requests: Sequence[Request], weights: Weights = "policy") -> Iterator[tuple[int, Rollout]]:
        print(f"sent {self.tensors} {self.messages} {self.wire}", file=sys.stderr, flush=True)
        return super().rollouts(requests, weights)


def nbytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def uncounted(*arguments: Any, **named: Any) -> int:
    raise RuntimeError("something is sent in a way that is not counted here")
