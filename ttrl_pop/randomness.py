"""Counter-based randomness: every draw is a pure function of what it is for.

A stream is keyed by parts such as `("token", run_seed, step, problem_id, mind_seed, sample)`; the counter is the
position in the stream. Nothing depends on batch composition, on rank count, or on what ran before, so a resumed run
and a rollout replayed alone draw the same numbers. Philox4x64-10: Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3" (SC 2011), in NumPy's implementation.
"""

import hashlib
import operator
from collections.abc import Iterator, Sequence
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

OUTSIDE_TRAINING = 0
"""Step of what is drawn before, after or beside training, whose own steps begin at 1. Two surveys of one run use the
same minds and the same random numbers, so their difference is due to the policy."""


def digest(*parts: SupportsIndex | str) -> bytes:
    """16 bytes that identify `parts`; ("a", 1) and ("a", "1") differ, as do ("ab",) and ("a", "b"). An integer of numpy
    is the integer that it stands for."""
    hasher = hashlib.blake2b(digest_size=16)
    for part in parts:
        kind, text = ("str", part) if isinstance(part, str) else ("int", str(int(operator.index(part))))
        encoded = text.encode("utf-8", "surrogatepass")
        hasher.update(f"{kind}:{len(encoded)}:".encode())
        hasher.update(encoded)
    return hasher.digest()


def stream(*parts: SupportsIndex | str) -> np.random.Generator:
    """The generator keyed by `parts`, at counter 0."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest(*parts), "little")))


def normals(keys: Sequence[Sequence[SupportsIndex | str]], count: int) -> NDArray[np.float32]:
    """[len(keys), count]: standard normal numbers, of each key those with which `stream(*key)` begins.

    One generator goes from key to key: to make one takes longer than to draw a few hundred numbers.
    """
    drawn = np.empty((len(keys), count), np.float32)
    generator = np.random.Generator(np.random.Philox(key=0))
    begin = generator.bit_generator.state
    for row, parts in zip(drawn, keys, strict=True):
        begin["state"]["key"] = np.frombuffer(digest(*parts), "<u8").astype(np.uint64)
        generator.bit_generator.state = begin
        generator.standard_normal(dtype=np.float32, out=row)
    return drawn


def seed(*parts: SupportsIndex | str) -> int:
    """A number in [1, 2**63): a seed for what takes one. 0 is left free to mean "no noise"."""
    return int.from_bytes(digest(*parts)[:8], "little") % (2**63 - 1) + 1


def batches(run_seed: int, population: int, size: int) -> Iterator[list[int]]:
    """Yield the indices of each step's problems, for ever: `size` different ones out of `population`.

    The problems come in one random order after another; every problem is seen once before any is seen again, but
    for a step that straddles two orders, whose own problems then go to the end of the next one.
    """
    size = min(size, population)
    queue: list[int] = []
    epoch = 0
    while True:
        if len(queue) < size:
            order = stream("order", run_seed, epoch).permutation(population).tolist()
            held = set(queue)
            queue += [i for i in order if i not in held] + [i for i in order if i in held]
            epoch += 1
        yield queue[:size]
        queue = queue[size:]
