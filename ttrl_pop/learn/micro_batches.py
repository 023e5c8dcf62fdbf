"""Samples of a step, cut into micro-batches that memory suffices for."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor

from ttrl_pop.kernels.memory import is_exhausted
from ttrl_pop.packing.budget import Budget
from ttrl_pop.types import Mind, Rollout

Done = TypeVar("Done")


@dataclass(slots=True)
class Sample:
    """A rollout that the loss counts, with its share in the step."""

    rollout: Rollout
    advantage: float
    weight: float
    """Weight of each of its tokens, in the normaliser of the whole step."""
    shard: int = 0
    """Part of the step that it belongs to."""
    old: Tensor | None = None
    """Log-probabilities [T] of the first pass, detached."""
    base: Tensor | None = None
    """Log-probabilities [T] under the base model, which no update changes; None until they are asked for."""


class MicroBatches:
    """How samples are cut: into parts of at most `token_budget` tokens, which is halved for good where memory runs
    out."""

    def __init__(self, reader: Callable[[Sample], Mind], token_budget: int) -> None:
        """`reader`: who reads a sample's prompt."""
        self.reader = reader
        self.token_budget = token_budget

    def cut(self, samples: Sequence[Sample]) -> Iterator[list[Sample]]:
        """Parts of at most `token_budget` tokens, and of at least one sample, as `ttrl_pop.packing.budget` counts them.

        Samples whose prompt has one reader stand together, as prompts of one reader do: a prompt counts once in each
        part, and so does what all prompts begin with. Short ones come first, so that the sequences of a part are of
        nearly one length.
        """
        trees: dict[tuple[tuple[int, ...], Mind], list[Sample]] = {}
        for sample in samples:
            trees.setdefault((sample.rollout.prompt_ids, self.reader(sample)), []).append(sample)
        budget = Budget(self.token_budget, (prompt_ids for prompt_ids, _ in trees))
        order = {mind: number for number, mind in enumerate(dict.fromkeys(mind for _, mind in trees))}
        by_reader = sorted(trees.items(), key=lambda item: (order[item[0][1]] if budget.shared else 0, len(item[0][0])))
        part: list[Sample] = []
        for prompt, tree in by_reader:
            for sample in sorted(tree, key=lambda sample: len(sample.rollout.completion_ids)):
                own = len(sample.rollout.completion_ids) - 1
                if part and not budget.fits(*prompt, own):
                    yield part
                    part = []
                    budget.clear()
                budget.take(*prompt, own)
                part.append(sample)
        if part:
            yield part

    def map(self, work: Callable[[list[Sample]], Done], samples: Sequence[Sample]) -> Iterator[Done]:
        """What `work` gives for each part. A part for which memory does not suffice, and all after it, are cut again.

        Args:
            work: leaves no trace where it fails.

        Raises:
            Exception: what `work` raised, where it was something else or the part was a single sample.
        """
        waiting = deque(self.cut(samples))
        while waiting:
            try:
                done = work(waiting[0])
            except (RuntimeError, MemoryError) as error:
                if len(waiting[0]) == 1 or not is_exhausted(error):
                    raise
                self.token_budget = max(1, self.token_budget // 2)
                waiting = deque(self.cut([*chain(*waiting)]))
            else:
                waiting.popleft()
                yield done


def pad(rows: Sequence[Tensor], like_BT: Tensor) -> Tensor:
    """Rows of different lengths as one tensor of the shape, type and device of `like_BT`, zeros on the right."""
    padded = torch.zeros_like(like_BT, requires_grad=False)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded
