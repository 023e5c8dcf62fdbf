"""Reward `novelty`: the majority decides the sign, the novelty of the text the size (EVOL-RL, arXiv 2509.15194).

    u_i = 1 − (s_i + m_i) / 2      s_i: mean similarity to the other rollouts on the same side (label, or not)
                                   m_i: largest similarity to any other rollout of the group
    ũ_i = u_i scaled to [0, 1] by the smallest and largest u of its side; 1/2 where they are equal
    r_i = 1/2 + ũ_i/2  for the label,   −1 + ũ_i/2  for another answer,   −1  for none

Similarity is the cosine of TF-IDF vectors of words, fitted on the group (`novelty`), or of sentence embeddings
(`novelty-embedding`: `ttrl_pop.embeddings`).

Simplification: a rollout that has its side for itself has s_i = 0, as nothing on it is similar.
"""

import importlib.util
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ttrl_pop.embeddings import Embedder
from ttrl_pop.errors import UsageError
from ttrl_pop.vote.rewards.base import Ballot

Matrix: TypeAlias = NDArray[np.float64]


def novelty_rewards(ballot: Ballot, similarity_GG: Matrix) -> tuple[float, ...]:
    """The reward by the formula above, for a symmetric matrix of similarities in [0, 1]."""
    count = len(ballot.answers_G)
    others_GG = ~np.eye(count, dtype=bool)
    labelled_G = [cluster is not None and cluster == ballot.label_cluster for cluster in ballot.cluster_G]
    answered_G = [cluster is not None for cluster in ballot.cluster_G]
    rewards = np.full(count, -1.0)
    for base, side_G in (
        (0.5, np.array(labelled_G)),
        (-1.0, np.array([a and not b for a, b in zip(answered_G, labelled_G, strict=True)])),
    ):
        if not side_G.any():
            continue
        same_GG = others_GG & side_G[None, :]
        mean_G = (similarity_GG * same_GG).sum(1) / np.maximum(same_GG.sum(1), 1)
        largest_G = np.where(others_GG, similarity_GG, 0.0).max(1)
        novelty = (1 - (mean_G + largest_G) / 2)[side_G]
        spread = novelty.max() - novelty.min()
        scaled = (novelty - novelty.min()) / spread if spread > 1e-9 else np.full(len(novelty), 0.5)
        rewards[side_G] = base + scaled / 2
    return tuple(rewards.tolist())


def tfidf_similarity(texts_G: Sequence[str]) -> Matrix:
    """Cosines of TF-IDF vectors; texts without words are similar to nothing, themselves included."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(text.split() for text in texts_G):
        return np.zeros((len(texts_G), len(texts_G)))
    vectors = TfidfVectorizer(token_pattern=r"\S+", lowercase=True).fit_transform(texts_G)
    similarity: Matrix = (vectors @ vectors.T).toarray()
    return similarity


class Novelty:
    """Reward `novelty`: texts are alike by their words."""

    def __init__(self) -> None:
        """
        Raises:
            UsageError: scikit-learn is not there.
        """
        if importlib.util.find_spec("sklearn") is None:
            raise UsageError("reward novelty needs scikit-learn: pip install 'ttrl-pop[novelty]'")

    def __call__(self, ballot: Ballot) -> tuple[float, ...]:
        return novelty_rewards(ballot, tfidf_similarity(ballot.texts_G))


class NoveltyEmbedding:
    """Reward `novelty-embedding`: texts are alike by their meaning."""

    def __init__(self) -> None:
        """
        Raises:
            UsageError: the model of embeddings is not to be had.
        """
        self._embed = Embedder()

    def __call__(self, ballot: Ballot) -> tuple[float, ...]:
        vectors = self._embed(ballot.texts_G)
        return novelty_rewards(ballot, np.clip(vectors @ vectors.T, 0.0, 1.0))
