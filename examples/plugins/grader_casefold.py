"""A grader plug-in: answers are equal if they are the same words, whatever their case and spacing.

PYTHONPATH=examples/plugins ttrl-pop run problems.jsonl --set vote.grader=grader_casefold:CasefoldGrader
"""

from ttrl_pop import Grader


class CasefoldGrader(Grader):
    def key(self, answer: str) -> str:
        return " ".join(answer.casefold().split())
