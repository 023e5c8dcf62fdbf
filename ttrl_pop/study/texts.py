"""Rollouts of a run's final answers → rows of their texts, each with its embedding and what the base model makes of it.

A row's `coherence` is the mean log p of its tokens under the base model, without a mind and at temperature 1: how
likely the text is to one that is neither heated nor shifted. Texts are data, here and wherever they go.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

from ttrl_pop.embeddings import Embedder
from ttrl_pop.learn.micro_batches import MicroBatches, Sample
from ttrl_pop.learn.objective import base_logprobs
from ttrl_pop.packing.budget import learner_tokens
from ttrl_pop.population.base import MEAN
from ttrl_pop.run.session import Session
from ttrl_pop.types import Rollout, Tally

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
        coherences = _coherences(session, rollouts)
        for number, (rollout, vector, coherence) in enumerate(zip(rollouts, vectors, coherences, strict=True)):
            yield {
                "id": tally.group.problem.id,
                "rollout": number,
                "mind": rollout.mind.seed,
                "text": rollout.text,
                "tokens": len(rollout.completion_ids),
                "coherence": coherence,
                "embedding": [round(value, DIGITS) for value in vector.tolist()],
            }


def _coherences(session: Session, rollouts_G: Sequence[Rollout]) -> list[float | None]:
    """Coherence of each rollout, None where it has no token, read in parts that memory suffices for."""
    samples_G = [Sample(rollout, advantage=0.0, weight=0.0) for rollout in rollouts_G]
    policy = session.policy
    budget = learner_tokens(session.config.learn.token_budget, policy.device, policy.network)

    def read(part: list[Sample]) -> None:
        for sample, base in zip(part, base_logprobs(policy, part, 1.0), strict=True):
            sample.base = base

    for _ in MicroBatches(lambda sample: MEAN, budget).map(read, [s for s in samples_G if s.rollout.completion_ids]):
        pass
    return [None if sample.base is None else float(sample.base.mean()) for sample in samples_G]
