"""TTRL-Guard's three rules on cases computed by hand."""

from collections import Counter
from collections.abc import Sequence

import pytest
from fakes import PROBLEMS, tallies_of, tally_of, tiny_policy, tiny_session

from ttrl_pop.config import GuardConfig
from ttrl_pop.learn.learner import Learner
from ttrl_pop.run.guard import bonuses, flip_scale, skipped, weights
from ttrl_pop.run.history import History, ProblemState
from ttrl_pop.vote.graders.exact import ExactGrader

same = ExactGrader().same
FULL, MIXED = 10, 6
"""Votes of ten for the label: all, and few enough that agreement is in no doubt."""


def visited(*visits: tuple[str, int], index: int = 0) -> History:
    """A history of visits of ten votes: the label, and how many of them it had."""
    history = History()
    for step, (label, votes) in enumerate(visits, 1):
        others = [f"{90 + number}" for number in range(10 - votes)]
        history = history.after([tally_of([label] * votes + others, PROBLEMS[index])], step, same)
    return history


def state_of(*visits: tuple[str, int]) -> ProblemState:
    return visited(*visits)["p0"]


@pytest.mark.parametrize(
    ("visits", "weight"),
    [
        ([("1", FULL)], 1.0),
        # A flip halves: 1 - 0.5. On a label that more than 0.6 agree on, 0.7 of that.
        ([("1", FULL), ("2", MIXED)], 0.5),
        ([("1", FULL), ("2", 7)], 0.35),
        # The visit after a flip counts in full again.
        ([("1", FULL), ("2", 7), ("2", 7)], 1.0),
        # Never flipped, five visits, mean agreement above 0.6: 1 - 0.3 / 2, five times and then no more.
        ([("1", 7)] * 4, 1.0),
        ([("1", 7)] * 5, 0.85),
        ([("1", 7)] * 9, 0.85),
        ([("1", 7)] * 10, 1.0),
        ([("1", MIXED)] * 9, 1.0),
        # Three of the window at 1 and two at 0.2: a mean of 0.68.
        ([("1", 2), ("1", 2), ("1", FULL), ("1", FULL), ("1", FULL)], 0.85),
        ([("1", 7)] * 5 + [("2", 7)] + [("2", 7)] * 5, 1.0),
    ],
)
def test_flips_scale_advantages(visits: Sequence[tuple[str, int]], weight: float) -> None:
    assert flip_scale(state_of(*visits)) == pytest.approx(weight)


CONTESTED = [("1", 8), ("2", 8), ("2", 8), ("2", 8), ("2", 8)]


def test_what_was_contested_and_is_locked_in_again_is_skipped_at_seven_steps_in_ten() -> None:
    state = state_of(*CONTESTED)
    share = sum(bool(skipped([state], seed, 1)) for seed in range(600)) / 600
    assert share == pytest.approx(0.7, abs=0.06)
    for harmless in (CONTESTED[:4], [("2", 8)] * 5, [*CONTESTED[:2], ("2", 6), ("2", 6), ("2", 6)]):
        assert not any(skipped([state_of(*harmless)], seed, 1) for seed in range(40))


def test_no_more_than_a_quarter_of_a_step_is_skipped_and_one_may_be() -> None:
    states = [visited(*CONTESTED, index=index)[f"p{index}"] for index in range(6)]
    for seed in range(40):
        assert len(skipped(states, seed, 1)) <= 1
    assert max(len(skipped(states[:1] * 8, seed, 1)) for seed in range(40)) == 1
    assert max(len(skipped((states * 2)[:8], seed, 1)) for seed in range(40)) == 2


def test_every_place_in_the_input_is_skipped_as_often() -> None:
    states = [visited(*CONTESTED, index=index)[f"p{index}"] for index in range(6)]
    often = Counter(problem_id for seed in range(600) for problem_id in skipped(states, seed, 1))
    assert sum(often.values()) > 590
    assert all(count == pytest.approx(100, abs=35) for count in often.values())
    assert len(often) == 6


def test_only_what_is_asked_for_is_done() -> None:
    history = visited(("1", FULL), ("2", 7))
    assert weights(history, ["p0"], GuardConfig(), 0, 1) == {"p0": 1.0}
    assert weights(history, ["p0"], GuardConfig(flip_scaling=True), 0, 1) == {"p0": 0.35}
    risky = visited(*CONTESTED)
    found = {weights(risky, ["p0"], GuardConfig(skip_risky=True), seed, 1)["p0"] for seed in range(40)}
    assert found == {0.0, 1.0}


def test_large_minorities_get_a_bonus_where_the_label_has_just_flipped() -> None:
    guard = GuardConfig(keep_minorities=True)
    # Of twelve votes five for the label; three and three make minorities, of which each member gets 0.3 * 3 / 6; one is
    # silent.
    tally = tally_of(["2"] * 5 + ["1"] * 3 + ["3"] * 3 + [None])
    before = History().after([tally_of(["1"] * 12)], 1, same)
    flipped = before.after([tally], 2, same)
    given = bonuses([tally], flipped, guard)["p0"]
    assert given == pytest.approx([0] * 5 + [0.15] * 6 + [0.05 * 0.15])
    assert bonuses([tally], flipped, GuardConfig()) == {}
    assert bonuses([tally], flipped.after([tally], 3, same), guard) == {}
    small = tally_of(["2"] * 10 + ["1"] * 2)
    assert bonuses([small], before.after([small], 2, same), guard) == {}


def test_a_bonus_reaches_the_learner_in_mean_sizes_of_the_advantages() -> None:
    session = tiny_session(tiny_policy())
    tallies = tallies_of(session, problems=PROBLEMS[:1])
    learner = Learner(session.policy, session.config)
    plain, _, _ = learner._samples(tallies, {}, {})
    raised, _, _ = learner._samples(tallies, {"p0": 0.5}, {"p0": [0.0, 0.3, 0.0, 0.0]})
    size = sum(abs(sample.advantage) for sample in plain) / len(plain)
    expected = [0.5 * (s.advantage + (0.3 * size if i == 1 else 0)) for i, s in enumerate(plain)]
    assert [sample.advantage for sample in raised] == pytest.approx(expected)
