"""How long a command goes on, reckoned by hand."""

import pytest

from ttrl_pop.cli.display.time_left import Left, TimeLeft
from ttrl_pop.sample.meter import Meter
from ttrl_pop.types import Load, StepReport, Work


class Run:
    """A command with a clock that is set by hand."""

    def __init__(self, **load: int) -> None:
        self.now = 100.0
        self.meter = Meter()
        self.time_left = TimeLeft(Load(**load), self.meter, lambda: self.now)

    def work(self, work: Work, rollouts: int, seconds: float, tokens: int = 0) -> None:
        self.time_left.begin(work, rollouts)
        self.write(rollouts if work != "learn" else 0, seconds, tokens)

    def write(self, rollouts: int, seconds: float, tokens: int = 0) -> None:
        self.now += seconds
        self.meter.rollouts += rollouts
        self.meter.finished += tokens

    def left(self) -> float | None:
        left = self.time_left.left()
        assert left is None or not left.at_least
        return None if left is None else left.seconds


def test_nothing_is_known_at_the_start() -> None:
    run = Run(survey=20, sample=40, steps=4)
    assert run.left() is None
    run.time_left.begin("survey", 10)
    run.now += 5
    assert run.left() is None


def test_surveys_steps_and_learning_have_paces_of_their_own() -> None:
    run = Run(survey=20, sample=40, steps=4)
    run.work("survey", 10, 30)
    run.work("sample", 10, 20)
    run.work("learn", 10, 50)
    run.time_left.end()
    assert run.left() == pytest.approx(10 * 3 + 30 * 2 + 50 * (0.8 + 0.8**2 + 0.8**3))


def test_before_anything_was_learned_the_rest_is_a_lower_bound() -> None:
    run = Run(survey=20, sample=40, steps=4)
    run.work("survey", 10, 30)
    run.time_left.end()
    assert run.time_left.left() == Left(10 * 3.0 + 40 * 3.0, at_least=True)


def test_what_is_under_way_counts_by_what_is_left_of_it() -> None:
    run = Run(survey=20)
    run.work("survey", 10, 30, tokens=40)
    run.time_left.begin("survey", 10)
    assert run.left() == 30
    run.write(4, 7, tokens=16)
    assert run.left() == pytest.approx(6 * 3)
    # All are written side by side, and none has ended.
    run.write(0, 7)
    run.meter.under_way = 16
    assert run.left() == pytest.approx(30 * (1 - 32 / 40))


def test_the_first_stretch_is_its_own_measure() -> None:
    run = Run(survey=20)
    run.time_left.begin("survey", 10)
    run.write(1, 6)
    assert run.left() is None
    run.write(3, 2)
    assert run.left() == pytest.approx(6 * 2 + 10 * 2)


def test_learning_is_under_way_by_the_clock_and_never_ends_before_its_time() -> None:
    run = Run(steps=2)
    run.work("learn", 10, 50)
    run.time_left.begin("learn", 10)
    run.now += 20
    assert run.left() == pytest.approx(30)
    run.now += 100
    assert 0 < run.left() < 1


def test_newer_paces_count_more() -> None:
    run = Run(sample=30)
    run.work("sample", 10, 10)
    run.work("sample", 10, 40)
    run.time_left.end()
    assert run.left() == pytest.approx(10 * (10 / 2 + 40) / (10 / 2 + 10))


def test_a_resumed_run_goes_by_the_steps_of_before() -> None:
    run = Run(survey=10, sample=10, steps=1)
    groups = {"learn/groups_used": 4, "learn/groups_skipped": 1}
    times = {"time/sample": 8.0, "time/vote": 2.0, "time/learn": 24.0, "time/step": 41.0}
    run.time_left.recall(StepReport(1, {"rollout/count": 10, **groups, **times}))
    # The last step is taken to learn from a fifth less.
    assert run.left() == pytest.approx(10 + 10 + 0.8 * 24)


def test_other_work_takes_nothing_from_the_load() -> None:
    run = Run(sample=10)
    run.work("sample", 5, 5)
    run.time_left.begin(None, 3)
    run.write(3, 60)
    run.time_left.end()
    assert run.left() == 5


def test_a_step_learns_from_ever_fewer_rollouts_as_before() -> None:
    run = Run(steps=5)
    run.work("learn", 40, 80)
    run.time_left.end()
    assert run.left() == pytest.approx(80 * (0.8 + 0.8**2 + 0.8**3 + 0.8**4))
    # Half as many, and a fall of a fifth beside it, which was expected.
    run.work("learn", 20, 40)
    run.time_left.end()
    falls = (0.5 * 0.8) ** 0.5
    assert run.left() == pytest.approx(40 * (falls + falls**2 + falls**3))
    run.work("learn", 10, 20)
    run.time_left.end()
    falls = (0.5 * 0.5 * 0.8) ** (1 / 3)
    assert run.left() == pytest.approx(20 * (falls + falls**2))


def test_steps_that_learn_from_more_than_before_are_taken_for_level() -> None:
    run = Run(steps=4)
    run.work("learn", 10, 20)
    run.work("learn", 20, 40)
    run.time_left.end()
    assert run.left() == pytest.approx(2 * 2 * 20)


def test_steps_that_learn_nothing_take_no_time() -> None:
    run = Run(steps=4)
    run.work("learn", 0, 1)
    run.work("learn", 0, 1)
    run.time_left.end()
    assert run.left() is None
