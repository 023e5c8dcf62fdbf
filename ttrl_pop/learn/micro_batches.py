"""Samples of a step, cut into batches that fit into the memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttrl_pop.packing.budget import Load
from ttrl_pop.types import Mind, Rollout


@dataclass(slots=True)
class Sample:
    """A rollout that the loss counts, with its share in the step."""

    rollout: Rollout
    advantage: float
    weight: float
    """Of each of its tokens, in the normaliser of the whole step."""
    old: Tensor | None = None
    """Log-probabilities [T] of the first pass, detached."""
    base: Tensor | None = None
    """Those of the base model [T], which no update changes; None until they are asked for."""


def micro_batches(
    samples: Sequence[Sample], reader: Callable[[Sample], Mind], token_budget: int
) -> Iterator[list[Sample]]:
    """Cut samples into batches of at most `token_budget` tokens, and of at least one sample, as
    `ttrl_pop.packing.budget.Load` counts them.

    Samples whose prompt has one reader stand together, as prompts of one reader do: a prompt counts once in each batch,
    and so does what all prompts begin with. Short ones come first, so that the sequences of a batch are of nearly one
    length.
    """
    trees: dict[tuple[tuple[int, ...], Mind], list[Sample]] = {}
    for sample in samples:
        trees.setdefault((sample.rollout.prompt_ids, reader(sample)), []).append(sample)
    load = Load(prompt_ids for prompt_ids, _ in trees)
    places = {mind: place for place, mind in enumerate(dict.fromkeys(mind for _, mind in trees))}
    by_reader = sorted(trees.items(), key=lambda item: (places[item[0][1]] if load.shared else 0, len(item[0][0])))
    batch: list[Sample] = []
    for prompt, tree in by_reader:
        for sample in sorted(tree, key=lambda sample: len(sample.rollout.completion_ids)):
            own = len(sample.rollout.completion_ids) - 1
            if batch and load.with_more(*prompt, own) > token_budget:
                yield batch
                batch = []
                load.clear()
            load.add(*prompt, own)
            batch.append(sample)
    if batch:
        yield batch


def pad(rows: Sequence[Tensor], like_BT: Tensor) -> Tensor:
    """Rows of different lengths as one tensor of the shape, type and device of `like_BT`, zeros on the right."""
    padded = torch.zeros_like(like_BT, requires_grad=False)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded
