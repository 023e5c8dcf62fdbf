"""State of each problem over time, and the weights that follow from it."""

import pytest
from fakes import PROBLEMS, tally_of

from ttrl_pop.run.history import History, ProblemState
from ttrl_pop.vote.graders.exact import ExactGrader

same = ExactGrader().same


def visited(*visits: list[str | None]) -> History:
    history = History()
    for step, answers in enumerate(visits, start=1):
        history = history.after([tally_of(answers)], step, same)
    return history


def test_a_visit_by_hand() -> None:
    history = visited(["1", "1", "2", None], ["2", "2", "2", "1"])
    assert list(history) == [PROBLEMS[0].id]
    (state,) = history.values()
    expected = ProblemState(
        id="p0",
        label="2",
        first="1",
        agreement=0.75,
        margin=0.5,
        visits=2,
        flips=1,
        recent=1,
        window=(0.5, 0.75),
        suspected=0,
        last_seen=2,
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
    after = before.after([tally_of(["2"])], 2, same)
    assert (before["p0"].label, after["p0"].label) == ("1", "2")
    assert after.flip_share(before, ["p0"]) == 1.0
    assert before.flip_share(History(), ["p0"]) is None


def test_rows_make_the_same_history_again() -> None:
    history = visited(["1", "2"], ["2", None])
    assert dict(History.of_rows(history.rows())) == dict(history)


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
