"""Rollouts of a run's final answers → rows of their texts, each with its embedding and what the base model makes of it.

A row's `coherence` is the mean log p of its tokens under the base model, without a mind and at temperature 1: how
likely the text is to one that is neither heated nor shifted. Texts are data, here and wherever they go.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch

from ttrl_pop.embeddings import Embedder
from ttrl_pop.model.logprobs import token_logprobs
from ttrl_pop.run.session import Session
from ttrl_pop.types import Tally

DIGITS = 5
"""Digits of an embedding that are kept."""

Row = dict[str, Any]


@cache
def embedder() -> Embedder:
    """What embeds the texts of all runs of this process.

    Raises:
        UsageError: its model is not to be had.
    """
    return Embedder()


def text_rows(session: Session, tallies: Sequence[Tally]) -> Iterator[Row]:
    """Yield a row for each rollout of these problems.

    Raises:
        UsageError: the model of embeddings is not to be had.
    """
    embed: Callable[[Sequence[str]], Any] = embedder()
    for tally in tallies:
        rollouts = tally.group.rollouts_G
        vectors = embed([rollout.text for rollout in rollouts])
        with torch.no_grad(), session.policy.as_base():
            logprobs_BT, mask_BT = token_logprobs(session.policy, rollouts, None, 1.0)
        sums = (logprobs_BT * mask_BT).sum(1).tolist()
        for number, (rollout, vector, total) in enumerate(zip(rollouts, vectors, sums, strict=True)):
            tokens = len(rollout.completion_ids)
            yield {
                "id": tally.group.problem.id,
                "rollout": number,
                "mind": rollout.mind.seed,
                "text": rollout.text,
                "tokens": tokens,
                "coherence": total / tokens if tokens else None,
                "embedding": [round(value, DIGITS) for value in vector.tolist()],
            }
