"""Reward `gold`: the built-in one that receives an answer key; it has to be asked for by name."""

from typing import ClassVar

from ttrl_pop.errors import UsageError
from ttrl_pop.report.gold import answers_correct
from ttrl_pop.types import AnswerKey
from ttrl_pop.vote.graders.base import Grader
from ttrl_pop.vote.rewards.base import Ballot


class GoldReward:
    """1 for an answer equal to gold, else 0: RLVR, the oracle that label-free runs are measured against."""

    needs_gold: ClassVar[bool] = True

    def __init__(self, answers: AnswerKey, grader: Grader) -> None:
        self._answers = answers
        self._grader = grader

    def __call__(self, ballot: Ballot) -> tuple[float, ...]:
        """One number per rollout, by the verdicts that reports of accuracy go by.

        Raises:
            UsageError: the problem has no gold answer.
        """
        gold = self._answers.get(ballot.problem_id)
        if gold is None:
            raise UsageError(
                f"reward gold needs a gold answer for every problem, problem {ballot.problem_id!r} has none; "
                "add it or leave the problem out"
            )
        return tuple(map(float, answers_correct(ballot.answers_G, gold, self._grader.same)))
