"""State of each problem over time, and the weights that follow from it."""

import pytest
from fakes import PROBLEMS, tally_of

from ttrl_pop.config import GuardConfig
from ttrl_pop.run.history import History, ProblemState, group_weight
from ttrl_pop.vote.graders.exact import ExactGrader

GUARD = GuardConfig(settled_agreement=0.75)
same = ExactGrader().same


def visited(*visits: list[str | None]) -> History:
    history = History()
    for step, answers in enumerate(visits, start=1):
        history = history.after([tally_of(answers)], step, same, GUARD)
    return history


def test_a_visit_by_hand() -> None:
    history = visited(["1", "1", "2", None], ["2", "2", "2", "1"])
    assert list(history) == [PROBLEMS[0].id]
    (state,) = history.values()
    expected = ProblemState(
        id="p0", label="2", first="1", agreement=0.75, margin=0.5, visits=2, flips=1, recent=1, settled=1, last_seen=2
    )
    assert state == expected
    assert state.flip_rate == 1.0


def test_a_flip_is_a_label_that_differs_not_one_that_is_spelled_otherwise_or_missing() -> None:
    (state,) = visited(["0.5"], ["1/2"], [None], ["\\frac12"], ["2"]).values()
    assert (state.visits, state.flips, state.label) == (5, 1, "2")
    (silent,) = visited([None], [None], ["1"]).values()
    assert (silent.flips, silent.label) == (0, "1")


def test_a_history_is_not_changed_by_what_comes_after() -> None:
    before = visited(["1"])
    after = before.after([tally_of(["2"])], 2, same, GUARD)
    assert (before["p0"].label, after["p0"].label) == ("1", "2")
    assert after.flip_share(before, ["p0"]) == 1.0
    assert before.flip_share(History(), ["p0"]) is None


def test_rows_make_the_same_history_again() -> None:
    history = visited(["1", "2"], ["2", None])
    assert dict(History.of_rows(history.rows())) == dict(history)


def test_flipping_problems_weigh_less() -> None:
    (state,) = visited(["1"], ["2"], ["2"], ["1"], ["1"]).values()
    assert group_weight(state, GuardConfig(flip_weight="steady")) == 0.5
    assert group_weight(state, GuardConfig()) == 1.0


def test_a_label_that_stops_changing_weighs_less() -> None:
    guard = GuardConfig(flip_weight="locking")
    flipping = [["1"], ["2"], ["1"]]
    weights = [group_weight(visited(*flipping, *[["1"]] * n)["p0"], guard) for n in range(6)]
    # Flips 2 of 2, 2/3, 2/4, 2/5, 2/6, 2/7 visits; of the newest four 2/2, 2/3, 2/4, 1/4, 0, 0.
    assert weights == pytest.approx([1, 1, 1, 0.625, 0, 0])
    assert group_weight(visited(*[["1"]] * 6)["p0"], guard) == 1.0


def test_a_settled_problem_learns_at_each_third_visit() -> None:
    guard = GUARD.model_copy(update={"settled_visits": 2, "settled_every": 3})
    weights = [group_weight(visited(*[["1"]] * n)["p0"], guard) for n in range(1, 10)]
    assert weights == [1, 1, 0, 0, 1, 0, 0, 1, 0]
    unsettled = visited(["1"], ["1"], ["1"], ["1", "2"])["p0"]
    assert group_weight(unsettled, guard) == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visits": 0}, "row 1, visits: Input should be greater than or equal to 1"),
        ({"flips": 2}, "row 1: 2 flips in 2 visits"),
        ({"agreement": float("nan")}, "row 1, agreement"),
        ({"recent": 16}, "row 1, recent"),
        ({"last_seen": 2**31}, "row 1, last_seen"),
        ({"label": 3}, "row 1, label"),
    ],
)
def test_a_row_that_no_visits_make_is_refused(change: dict[str, object], message: str) -> None:
    (row,) = visited(["1"], ["2"]).rows()
    with pytest.raises(ValueError, match=message):
        History.of_rows([{**row, **change}])
