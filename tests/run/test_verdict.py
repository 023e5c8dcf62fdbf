"""The verdict and the soundness of a checkpoint on made-up runs, one for each way that a run can go."""

from collections.abc import Sequence
from typing import Any

import pytest
from fakes import PROBLEMS, tally_of

from ttrl_pop.run.history import History
from ttrl_pop.run.verdict import judge, settled, soundness
from ttrl_pop.vote.graders.exact import ExactGrader

same = ExactGrader().same


def rows(
    agreement: Sequence[float], first: Sequence[float], flips: Sequence[float] = (), alarm: str | None = None
) -> list[dict[str, Any]]:
    flips = [*flips, *[0.0] * (len(agreement) - len(flips))]
    made: list[dict[str, Any]] = [
        {"step": step, "vote/agreement": a, "vote/first_label": f, "vote/flip_rate": r}
        for step, (a, f, r) in enumerate(zip(agreement, first, flips, strict=True), 1)
    ]
    if alarm:
        made[-1]["alarm"] = alarm
    return made


def history_of(*labels: str, problems: int = 1) -> History:
    history = History()
    for step, label in enumerate(labels, 1):
        tallies = [tally_of([label], problem) for problem in PROBLEMS[:problems]]
        history = history.after(tallies, step, same)
    return history


RISING = [0.5, 0.5, 0.5, 0.7, 0.9, 0.95, 0.95, 0.95]
COLLAPSED = [0.5, 0.55, 0.5, 0.2, 0.1, 0.1, 0.1, 0.1]
RISEN = rows(RISING, RISING)
MOVED, STILL = history_of("1", "2", "1", "2"), history_of("1", "2", "2", "2", "2")


@pytest.mark.parametrize(
    ("made", "history", "moved", "kind"),
    [
        (rows(RISING[:5], RISING[:5]), STILL, 0.0, "too early to tell"),
        (rows(RISING, RISING, alarm="entropy 0"), STILL, 0.0, "collapsing"),
        (rows(RISING, COLLAPSED), STILL, 0.9, "collapsing"),
        (rows([0.8, 0.8, 0.8, 0.5, 0.5, 0.5], [0.8, 0.8, 0.8, 0.65, 0.65, 0.65]), MOVED, 0.1, "collapsing"),
        (rows(RISING, RISING), STILL, 0.0, "sharpening only"),
        (rows(RISING, [0.5] * 8), STILL, 0.4, "settled"),
        (rows(RISING, [0.5] * 8, [0.4, 0.3, 0.2]), MOVED, 0.4, "learning"),
        (rows([0.5] * 8, [0.5] * 8), MOVED, 0.4, "no change"),
    ],
)
def test_each_way_that_a_run_can_go(made: list[dict[str, Any]], history: History, moved: float, kind: str) -> None:
    assert judge(made, history, moved, 1).kind == kind


def test_gold_answers_and_problems_held_out_have_no_say() -> None:
    made = rows(RISING, [0.5] * 8, [0.4, 0.3, 0.2])
    figures = ("rollout/accuracy", "vote/label_accuracy", "holdout/accuracy", "holdout/agreement", "holdout/abstained")
    for told in ([{**row, **dict.fromkeys(figures, share)} for row in made] for share in (0.0, 1.0)):
        assert judge(told, MOVED, 0.4, 1) == judge(made, MOVED, 0.4, 1)
        assert [*map(soundness, told)] == [*map(soundness, made)]


def test_labels_no_longer_move_once_every_problem_was_seen_often_enough_without_a_flip() -> None:
    assert not settled(RISEN, history_of("1", "1", "1"), 1)
    assert settled(RISEN, history_of("1", "1", "1", "1"), 1)
    assert not settled(RISEN, history_of("1", "1", "2", "2", "2"), 1)
    assert settled(RISEN, history_of("1", "1", "2", "2", "2", "2"), 1)
    assert not settled(RISEN, history_of("1", "1", "1", "1", problems=5), 6), "a problem has not been seen"
    assert not settled(RISEN, History(), 1)


CUT = {"learn/groups_used": 0, "learn/groups_skipped": 2, "learn/skipped_cut_off": 1, "learn/skipped_unanswered": 1}


@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.parametrize(
    ("made", "why"),
    [
        (rows([0.0] * 8, [0.0] * 8), "no answer was read in"),
        (rows([0.0] * 8, [0.0] * 8, alarm="no answers"), "no answer was read in"),
        ([{**row, **CUT} for row in rows([0.5] * 8, [0.5] * 8)], "was cut off by the token limit or had no answer"),
    ],
)
def test_a_run_with_nothing_to_learn_from_is_not_settled(made: list[dict[str, Any]], why: str, steps: int) -> None:
    verdict = judge(made[:steps], STILL, 0.0, 1)
    assert verdict.kind == "nothing learned"
    assert why in verdict.why
    assert not settled(made, STILL, 1)


def test_one_step_with_something_to_learn_from_is_enough() -> None:
    made = [{**row, **CUT} for row in rows([0.5] * 8, [0.5] * 8)]
    made[3] |= {"learn/groups_used": 1, "learn/groups_skipped": 1, "learn/skipped_unanswered": 0}
    assert judge(made, STILL, 0.0, 1).kind == "settled"
    assert judge([*rows([0.0] * 7, [0.0] * 7), *RISEN[:1]], STILL, 0.0, 1).kind != "nothing learned"


def best(made: list[dict[str, Any]], key: Any) -> int:
    return max(made, key=key)["step"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("made", "sound"),
    [
        # All problems get one answer: agreement rises to the end, and the labels of the beginning lose their votes.
        (rows([0.5, 0.6, 0.7, 0.9, 1.0, 1.0], [0.5, 0.6, 0.65, 0.4, 0.1, 0.1], [0, 0.1, 0.1, 0.5, 0.6, 0]), 3),
        # Agreement rises while labels turn round and round.
        (rows([0.5, 0.6, 0.7, 0.8, 0.9], [0.5, 0.6, 0.6, 0.6, 0.6], [0, 0, 0.3, 0.5, 0.6]), 2),
        # A run that gets better to the end.
        (rows([0.5, 0.6, 0.7, 0.8], [0.5, 0.55, 0.65, 0.7], [0, 0.2, 0.1, 0]), 4),
    ],
)
def test_the_soundest_step_is_not_the_one_of_highest_agreement(made: list[dict[str, Any]], sound: int) -> None:
    assert best(made, soundness) == sound
    assert best(made, lambda row: row["vote/agreement"]) >= sound


def test_soundness_by_hand() -> None:
    assert soundness({"vote/first_label": 0.8, "vote/flip_rate": 0.25}) == pytest.approx(0.6)
    assert soundness({"vote/first_label": 0.8, "vote/flip_rate": None}) == 0.8
