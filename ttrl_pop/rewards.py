"""Rewards: from the answers of one group to one number per rollout. Pure functions of a `Ballot`.

A reward of your own is a callable `Ballot -> tuple[float, ...]`, or a class without arguments whose instances
are, named as `package.module:Name` (see examples/plugins/reward_short.py). A class that sets `needs_gold = True`
is built with the answer key and the grader; nothing else ever receives the key.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from ttrl_pop.errors import UsageError
from ttrl_pop.graders.base import Grader
from ttrl_pop.plugins import load
from ttrl_pop.types import AnswerKey


@dataclass(frozen=True, slots=True)
class Ballot:
    """One group's answers, clustered: all that a reward may look at."""

    problem_id: str
    answers_G: tuple[str | None, ...]
    """Extracted answers; None is an abstention."""
    cluster_G: tuple[int | None, ...]
    """Index of each answer's cluster, the largest being 0; None for an abstention."""
    sizes: tuple[int, ...]
    """Members of each cluster, largest first."""
    label: str | None
    """The answer of the largest cluster; None when every rollout abstained."""
    texts_G: tuple[str, ...]


Reward: TypeAlias = Callable[[Ballot], tuple[float, ...]]


def majority(ballot: Ballot) -> tuple[float, ...]:
    """1[c = top]: 1 for answers of the largest cluster, else 0, abstentions too (TTRL, arXiv 2504.16084)."""
    return tuple(float(cluster == 0) for cluster in ballot.cluster_G)


def frequency(ballot: Ballot) -> tuple[float, ...]:
    """p_c = size of the answer's cluster / G (EMPO, arXiv 2504.05812).

    Abstentions count in G and get 0. When all answers differ, the whole group gets 0.
    """
    if max(ballot.sizes, default=0) < 2:
        return (0.0,) * len(ballot.answers_G)
    return tuple(
        0.0 if cluster is None else ballot.sizes[cluster] / len(ballot.answers_G) for cluster in ballot.cluster_G
    )


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


def build_reward(name: str, answers: AnswerKey, grader: Grader) -> Reward:
    """The reward that `name` stands for, ready to call.

    Raises:
        UsageError: there is no such reward, it is not callable, or it needs gold and `answers` is empty.
    """
    loaded = load("reward", name)
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
    return reward
