"""A step, cut into shards, and their sums. Neither depends on how many processes there are.

Rollouts that share a prompt and who reads it lie together, so that it is read by one shard. What is added over shards
is added in one fixed binary tree, whose numbers are the same to the bit whoever adds which of them: a process owns one
whole subtree.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

Part = TypeVar("Part")


def enough_for(size: int) -> int:
    """The smallest power of two that is no less than `size`: shards of a run that `size` processes begin."""
    return int(2 ** (size - 1).bit_length())


def together(read: Sequence[tuple[Hashable, Hashable]]) -> list[int]:
    """An order of rollouts in which those with one reader stand together, and of these those with one prompt.

    Args:
        read: reader and prompt of each rollout.
    """
    readers = {reader: number for number, reader in enumerate(dict.fromkeys(reader for reader, _ in read))}
    prompts = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompt for _, prompt in read))}
    return sorted(range(len(read)), key=lambda i: (readers[read[i][0]], prompts[read[i][1]]))


def cut(costs: Sequence[int], shards: int) -> list[int]:
    """The shard of each item, all of which cost something: items that lie side by side, of about as much cost in all
    for each shard."""
    found, before, whole = [], 0, sum(costs)
    for cost in costs:
        # By the middle of an item: the one that lies across a border goes where more of it lies.
        found.append((2 * before + cost) * shards // (2 * whole))
        before += cost
    return found


def owned(rank: int, size: int, shards: int) -> range:
    """The shards of a process: a subtree of the tree of `total`, of which there are `size` with all shards in them."""
    own = range(shards)
    for low, middle, high in splits(rank, size):
        half = len(own) // 2
        own = own[:half] if low <= rank < middle else own[half:]
        assert len(own) >= (middle - low if rank < middle else high - middle), f"{size} processes, {shards} shards"
    return own


def splits(rank: int, size: int) -> list[tuple[int, int, int]]:
    """How the processes are halved until `rank` is alone: (first of the left half, of the right half, behind it)."""
    low, high, found = 0, size, []
    while high - low > 1:
        middle = (low + high + 1) // 2
        found.append((low, middle, high))
        low, high = (low, middle) if rank < middle else (middle, high)
    return found


def total(shards: range, part: Callable[[int], Part], add: Callable[[Part, Part], Part]) -> Part:
    """The sum of the parts of these shards: the left half's plus the right half's, and so on down to one shard.

    Parts are made when they are needed: at most one for each level of the tree is held, and one more.
    """
    if len(shards) == 1:
        return part(shards[0])
    half = len(shards) // 2
    left = total(shards[:half], part, add)
    return add(left, total(shards[half:], part, add))
