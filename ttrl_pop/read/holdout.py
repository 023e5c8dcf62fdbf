"""Problems that are kept out of training, to measure by: a share of those that are given, or a file of their own."""

from collections.abc import Sequence
from dataclasses import replace

from ttrl_pop.errors import UsageError
from ttrl_pop.randomness import stream
from ttrl_pop.read.problems import fingerprint
from ttrl_pop.text import shown
from ttrl_pop.types import AnswerKey, Problem, ProblemSet


def split(problems: ProblemSet, share: float, seed: int) -> tuple[ProblemSet, ProblemSet]:
    """The problems to train on, and those that are held out: a share of all, drawn by the run's seed.

    Raises:
        UsageError: one of the two would be empty.
    """
    count = len(problems.problems)
    held = max(1, round(share * count))
    if held >= count:
        raise UsageError(
            f"--holdout {share:g} keeps {held} of {count} problems out, which leaves none to train on; pass a smaller "
            "share, or a file of other problems"
        )
    drawn = set(stream("holdout", seed).permutation(count)[:held].tolist())
    kept = [[p for i, p in enumerate(problems.problems) if (i in drawn) == is_held] for is_held in (False, True)]
    trained, held_out = (_part(problems, part) for part in kept)
    check_apart(trained.problems, held_out.problems)
    return trained, held_out


def check_apart(trained: Sequence[Problem], held: Sequence[Problem]) -> None:
    """Check that no problem that is held out is trained on under another id.

    Raises:
        UsageError: one is.
    """
    asked = {repr(problem.prompt): problem.id for problem in trained}
    for problem in held:
        if (found := asked.get(repr(problem.prompt))) is not None:
            raise UsageError(
                f"--holdout: problem '{shown(problem.id)}' asks what '{shown(found)}' asks, which is trained on; leave "
                "one of them out"
            )


def _part(whole: ProblemSet, problems: Sequence[Problem]) -> ProblemSet:
    """Some problems of a set, counted from 0, with their gold answers and no other ones."""
    counted = tuple(replace(problem, index=index) for index, problem in enumerate(problems))
    answers = {p.id: whole.answers[p.id] for p in counted if p.id in whole.answers}
    return ProblemSet(counted, AnswerKey(answers), fingerprint(counted), whole.source)
