"""What a mind decides, by hand and against chance."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from fakes import tally_of
from hypothesis import given
from hypothesis import strategies as st

from ttrl_pop.report.measures import measure
from ttrl_pop.report.minds import agreement, entropy, information, mutual_information
from ttrl_pop.types import AnswerKey, Mind, Tally


def tally_by(answers: Sequence[str | None], minds: Sequence[int]) -> Tally:
    """A vote on answers of these minds."""
    tally = tally_of(answers)
    rollouts = (replace(r, mind=Mind(m)) for r, m in zip(tally.group.rollouts_G, minds, strict=True))
    return replace(tally, group=replace(tally.group, rollouts_G=tuple(rollouts)))


def test_agreement_counts_pairs_of_one_mind_and_of_two_apart() -> None:
    # Mind 1: one pair, equal. Mind 2: one pair, not. Between them: 1-1, 1-2, 1-1, 1-2, of which two are equal.
    assert agreement(tally_by(["1", "1", "1", "2"], [1, 1, 2, 2])) == (0.5, 0.5)
    assert agreement(tally_by(["1", "2", "1", "2"], [1, 2, 1, 2])) == (1.0, 0.0)
    assert agreement(tally_by(["1", "1"], [1, 2])) == (None, 1.0)
    assert agreement(tally_by(["1", "1"], [1, 1])) == (1.0, None)
    assert agreement(tally_by([None, None, "1"], [1, 1, 1])) == (0.0, None), "an abstention agrees with nothing"


def test_equal_answers_may_be_spelled_in_different_ways() -> None:
    assert agreement(tally_by(["0.5", ".5"], [1, 1])) == (1.0, None)


@given(st.lists(st.tuples(st.sampled_from(["1", "2", None]), st.integers(1, 3)), min_size=2, max_size=8), st.randoms())
def test_the_order_of_rollouts_changes_nothing(rows: list[tuple[str | None, int]], random) -> None:  # type: ignore[no-untyped-def]
    shuffled = random.sample(rows, len(rows))
    one, other = (agreement(tally_by(*map(list, zip(*part, strict=True)))) for part in (rows, shuffled))  # type: ignore[arg-type]
    assert one == pytest.approx(other)


def test_information_by_hand() -> None:
    correction = 1 / (2 * 4 * math.log(2))
    assert entropy(["a", "a", "b", "b"]) == pytest.approx(1 + correction)
    assert entropy(["a"] * 4) == 0
    # Two minds that decide all: H(A) = H(M) = H(A, M) = 1 bit and one more value than one.
    assert mutual_information([0, 0, 1, 1], [5, 5, 6, 6]) == pytest.approx(1 + correction)
    # Two that decide nothing: the joint has four values.
    assert mutual_information([0, 1, 0, 1], [5, 5, 6, 6]) == pytest.approx(0 + (1 + 1 - 3) * correction)


def test_minds_that_decide_are_told_from_minds_that_do_not() -> None:
    minds = [1, 1, 2, 2, 3, 3, 4, 4]
    decided = [tally_by(["1", "1", "2", "2", "3", "3", "1", "1"], minds) for _ in range(4)]
    mixed = [tally_by(["1", "2", "3", "1", "2", "1", "3", "1"], minds) for _ in range(4)]
    found = information(decided, 0, 200)
    assert found.p < 0.01
    assert found.bits > found.null + 0.5
    assert information(mixed, 0, 200).p > 0.3
    assert information(decided, 0, 200) == found
    constant = information([tally_by(["1"] * 8, minds)], 0, 50)
    assert constant.p == 1.0, "where every deal tells as much, none is a surprise"


def test_measures_show_both_agreements() -> None:
    tallies = [tally_by(["1", "1", "2", "2"], [1, 1, 2, 2])]
    values = measure(tallies, AnswerKey(), lambda a, b: a == b, [1], 0).values
    assert values["same_mind"] == 1.0
    assert values["other_minds"] == 0.0
