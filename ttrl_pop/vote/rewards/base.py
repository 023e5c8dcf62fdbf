"""Rewards: from the answers of one group to one number per rollout. Pure functions of a `Ballot`.

A reward is named by one term or by a weighted sum of them: `majority`, `gated+0.2*format+0.5*overlong`. A term of
your own is a callable `Ballot -> tuple[float, ...]`, or a class without arguments whose instances are, named as
`package.module:Name` (see examples/plugins/reward_short.py). A class that sets `needs_gold = True` is built with the
answer key and the grader; nothing else ever receives the key.

p_c is the share of cluster c among all votes; p1 ≥ p2 are the two largest.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar, TypeAlias

from ttrl_pop.errors import UsageError
from ttrl_pop.plugins import load
from ttrl_pop.types import AnswerKey
from ttrl_pop.vote.graders.base import Grader

CONSENSUS = 0.375
"""Smallest share at which `gated` trusts the label."""
LEAD = 0.125
"""Lead over the next answer that `gated` asks for more than."""
ROUNDING = 1e-9
"""By which floats that stand for equal shares or certainties may differ."""
RARE = 0.125
"""Answers with a smaller share may be punished by `gated`."""
BUFFER = 0.2
"""Share of the token limit over which `overlong` falls to −1."""


@dataclass(frozen=True, slots=True)
class Ballot:
    """One group's answers, clustered: all that a reward may look at."""

    problem_id: str
    answers_G: tuple[str | None, ...]
    """Extracted answers; None is an abstention."""
    cluster_G: tuple[int | None, ...]
    """Index of each answer's cluster, the one with most votes being 0; None for an abstention."""
    shares: tuple[float, ...]
    """Each cluster's share of all votes, largest first. They sum to less than 1 where rollouts abstained."""
    label: str | None
    """The pseudo-label; None when nobody answered."""
    label_cluster: int | None
    """Index of the cluster that equals the label; None when none does."""
    texts_G: tuple[str, ...]
    finished_G: tuple[bool, ...]
    """False where the token limit cut the completion off."""
    lengths_G: tuple[int, ...]
    """Tokens of each completion."""
    logprob_G: tuple[float | None, ...]
    """Mean log-probability of each completion's tokens, nats; None without tokens."""
    token_limit: int | None
    """Longest completion that sampling allowed; None where unknown."""


Reward: TypeAlias = Callable[[Ballot], tuple[float, ...]]


def majority(ballot: Ballot) -> tuple[float, ...]:
    """1[c = label], else 0, abstentions too (TTRL, arXiv 2504.16084)."""
    label = ballot.label_cluster
    return tuple(float(cluster is not None and cluster == label) for cluster in ballot.cluster_G)


def frequency(ballot: Ballot) -> tuple[float, ...]:
    """p_c, the share of the answer's cluster (EMPO, arXiv 2504.05812).

    Abstentions count in the whole and get 0. When all answers differ, the whole group gets 0.
    """
    answered = [cluster for cluster in ballot.cluster_G if cluster is not None]
    if len(set(answered)) == len(answered):
        return (0.0,) * len(ballot.answers_G)
    return tuple(0.0 if cluster is None else ballot.shares[cluster] for cluster in ballot.cluster_G)


def gated(ballot: Ballot) -> tuple[float, ...]:
    """1 for the label, but only where consensus is clear; −1 for rare answers of the unsure, and for none (SCRL,
    arXiv 2603.19880).

        1   if c = label, p1 ≥ 0.375 and p1 − p2 > 0.125
        −1  if there is no answer, or p_c < 0.125 and the answer is less certain than the average
        0   otherwise

    p1 is the label's share and p2 the largest other. The certainty of an answer is the mean, over the rollouts that
    gave it, of their mean log p; the average is over all rollouts that answered. Without log-probabilities nothing is
    known to be uncertain.
    """
    label = ballot.label_cluster
    share = 0.0 if label is None else ballot.shares[label]
    next_share = max((p for cluster, p in enumerate(ballot.shares) if cluster != label), default=0.0)
    trusted = share >= CONSENSUS - ROUNDING and share - next_share > LEAD + ROUNDING
    known = [
        (cluster, logprob)
        for cluster, logprob in zip(ballot.cluster_G, ballot.logprob_G, strict=True)
        if cluster is not None and logprob is not None
    ]
    average = fmean(logprob for _, logprob in known) if known else -math.inf

    def reward(cluster: int | None) -> float:
        if cluster is None:
            return -1.0
        if cluster == label and trusted:
            return 1.0
        certainty = [logprob for other, logprob in known if other == cluster]
        unsure = bool(certainty) and fmean(certainty) < average - ROUNDING
        return -1.0 if ballot.shares[cluster] < RARE - ROUNDING and unsure else 0.0

    return tuple(reward(cluster) for cluster in ballot.cluster_G)


def form(ballot: Ballot) -> tuple[float, ...]:
    """1 for a completion that ended by itself and holds an answer where one is looked for, else 0; a term to add."""
    return tuple(
        float(answer is not None and finished)
        for answer, finished in zip(ballot.answers_G, ballot.finished_G, strict=True)
    )


def overlong(ballot: Ballot) -> tuple[float, ...]:
    """0 up to (1 − b)·L tokens, then falling linearly to −1 at the limit L, b = 0.2; −1 if cut off (soft overlong
    punishment of DAPO, arXiv 2503.14476 eq. 13). A term to add; pass learn.mask_truncated=false with it.

    Raises:
        UsageError: the limit is not known.
    """
    limit = ballot.token_limit
    if limit is None:
        raise UsageError("reward overlong needs the token limit of the rollouts, which is not known here")

    def reward(length: int, finished: bool) -> float:
        return -1.0 if not finished else -min(1.0, max(0.0, (length / limit - (1 - BUFFER)) / BUFFER))

    return tuple(reward(length, finished) for length, finished in zip(ballot.lengths_G, ballot.finished_G, strict=True))


class GoldReward:
    """1 for an answer equal to gold, else 0: RLVR, the oracle that label-free runs are measured against."""

    needs_gold: ClassVar[bool] = True

    def __init__(self, answers: AnswerKey, grader: Grader) -> None:
        self._answers = answers
        self._grader = grader

    def __call__(self, ballot: Ballot) -> tuple[float, ...]:
        """
        Raises:
            UsageError: the problem has no gold answer.
        """
        gold = self._answers.get(ballot.problem_id)
        if gold is None:
            raise UsageError(
                f"reward gold needs a gold answer for every problem, problem {ballot.problem_id!r} has none; "
                "add it or leave the problem out"
            )
        # A grader may be slow: each spelling is graded once.
        correct = {answer: float(self._grader.same(answer, gold)) for answer in set(ballot.answers_G)}
        return tuple(correct[answer] for answer in ballot.answers_G)


def needs_gold(name: str) -> bool:
    """Whether a term of this reward looks at gold answers.

    Raises:
        UsageError: there is no such reward.
    """
    terms = (load("reward", term.rpartition("*")[2].strip()) for term in name.split("+"))
    return any(getattr(term, "needs_gold", False) for term in terms)


def build_reward(name: str, answers: AnswerKey, grader: Grader) -> Reward:
    """The reward that `name` stands for, ready to call: a term, or a sum of terms with weights (`0.2*format`).

    Raises:
        UsageError: there is no such reward, it is not callable, or it needs gold and `answers` is empty.
    """
    terms = [_term(text.strip(), name, answers, grader) for text in name.split("+")]
    if len(terms) == 1 and terms[0][0] == 1.0:
        return terms[0][1]

    def total(ballot: Ballot) -> tuple[float, ...]:
        columns = [[weight * value for value in reward(ballot)] for weight, reward in terms]
        return tuple(math.fsum(values) for values in zip(*columns, strict=True))

    return total


def _term(text: str, whole: str, answers: AnswerKey, grader: Grader) -> tuple[float, Reward]:
    """One summand: its weight and its reward."""
    factor, star, name = text.rpartition("*")
    try:
        weight = float(factor) if star else 1.0
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise UsageError(f"a reward is NAME or WEIGHT*NAME, joined by +; got {text!r} in {whole!r}")
    loaded = load("reward", name.strip())
    reward: Reward
    if not isinstance(loaded, type):
        reward = loaded
    elif not getattr(loaded, "needs_gold", False):
        reward = loaded()
    elif answers:
        reward = loaded(answers, grader)
    else:
        raise UsageError(
            f"reward {name} needs gold answers, none came; pass --gold or give the problems an answer field"
        )
    if not callable(reward):
        raise UsageError(f"a reward must be callable on a ballot, got {name!r}, a {type(reward).__name__}")
    return weight, reward
