"""A step, cut into shards, and their sums. Neither depends on how many processes there are.

A shard holds some minds' rollouts of every problem. What is added over shards is added in one fixed binary tree, whose
numbers are the same to the bit whoever adds which of them: a process owns one whole subtree.
"""

from collections.abc import Callable
from typing import TypeVar

Part = TypeVar("Part")


def enough_for(size: int) -> int:
    """The smallest power of two that is no less than `size`: shards of a run that `size` processes begin."""
    return int(2 ** (size - 1).bit_length())


def shard_of(member: int, problem: int, members: int, problems: int, shards: int) -> int:
    """The shard of a rollout: minds are shared out before problems, as prompts of a mind are read together.

    Args:
        member: place of the rollout among the `members` of its group, which stand mind by mind.
        problem: place of its problem among the `problems` of the step.
    """
    return (member * problems + problem) * shards // (members * problems)


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
