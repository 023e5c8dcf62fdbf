"""Problems held out: drawn by the seed, apart from those that are trained on, with their own gold answers."""

import pytest

from ttrl_pop.errors import UsageError
from ttrl_pop.read.holdout import check_apart, split
from ttrl_pop.read.problems import fingerprint
from ttrl_pop.types import AnswerKey, Problem, ProblemSet


def set_of(count: int) -> ProblemSet:
    problems = tuple(Problem(f"p{i}", f"What is {i}?", i) for i in range(count))
    return ProblemSet(problems, AnswerKey({f"p{i}": str(i) for i in range(0, count, 2)}), fingerprint(problems), "f")


@pytest.mark.parametrize(("count", "share", "held"), [(10, 0.2, 2), (10, 0.001, 1), (2, 0.5, 1), (97, 0.33, 32)])
def test_a_share_parts_problems_and_gold_answers(count: int, share: float, held: int) -> None:
    whole = set_of(count)
    trained, held_out = split(whole, share, seed=3)
    assert len(held_out.problems) == held
    ids = [problem.id for part in (trained, held_out) for problem in part.problems]
    assert sorted(ids) == sorted(problem.id for problem in whole.problems)
    for part in (trained, held_out):
        assert [problem.index for problem in part.problems] == list(range(len(part.problems)))
        assert dict(part.answers) == {p.id: whole.answers[p.id] for p in part.problems if p.id in whole.answers}
        assert part.fingerprint == fingerprint(part.problems)


def test_the_seed_and_nothing_else_draws_them() -> None:
    whole = set_of(40)
    assert split(whole, 0.3, 1) == split(whole, 0.3, 1)
    assert split(whole, 0.3, 1)[1].problems != split(whole, 0.3, 2)[1].problems


def test_a_share_that_leaves_none_is_refused() -> None:
    with pytest.raises(UsageError, match="keeps 3 of 3 problems out, which leaves none to train on"):
        split(set_of(3), 0.9, 0)


def test_a_problem_that_is_trained_on_under_another_id_is_refused() -> None:
    with pytest.raises(UsageError, match="problem 'x' asks what 'p1' asks"):
        check_apart(set_of(3).problems, [Problem("x", "What is 1?", 0)])
