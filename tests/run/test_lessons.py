"""Steps that teach nothing say why, and a run of them what to set."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from fakes import PROBLEMS, tallies_of, tally_of, tiny_session

from ttrl_pop.config import Config, LearnConfig, SamplingConfig
from ttrl_pop.learn.learner import Learner
from ttrl_pop.run.lessons import CAUSES, CutOff, Lessons, cause_of, skipped
from ttrl_pop.types import StepReport, Tally

CONFIG = Config(sampling=SamplingConfig(max_new_tokens=7))


def tally(answers: Sequence[str | None], cut: int = 0, rewards: Sequence[float] | None = None) -> Tally:
    """A vote on these answers, of which the first `cut` rollouts were cut off."""
    voted = tally_of(answers)
    rollouts = tuple(
        replace(rollout, finish_reason="length" if i < cut else "stop")
        for i, rollout in enumerate(voted.group.rollouts_G)
    )
    changes: dict[str, Any] = {} if rewards is None else {"rewards_G": tuple(rewards)}
    return replace(voted, group=replace(voted.group, rollouts_G=rollouts), **changes)


@pytest.mark.parametrize(
    ("given", "weight", "mask", "cause"),
    [
        (tally(["4", "4", "5"]), 1.0, True, None),
        (tally(["4", "4", None]), 1.0, True, None),
        (tally(["4", "4", "5"], cut=2), 1.0, True, None),
        (tally(["4", "4", "5"], cut=3), 1.0, True, "cut_off"),
        (tally(["4", "4", "5"], cut=3), 1.0, False, None),
        (tally([None, None], cut=2), 1.0, True, "cut_off"),
        (tally([None, None], cut=2), 1.0, False, "unanswered"),
        (tally([None, None]), 1.0, True, "unanswered"),
        (tally(["4", "5"]), 0.0, True, "settled"),
        (tally(["4", "4"]), 1.0, True, "agreed"),
        (tally(["4", "5"], rewards=[0.0, 0.0]), 1.0, True, "equal"),
        (tally(["4", None], rewards=[1.0, 1.0]), 1.0, True, "equal"),
    ],
)
def test_each_cause_is_told_from_the_others(given: Tally, weight: float, mask: bool, cause: str | None) -> None:
    assert cause_of(given, weight, LearnConfig(mask_truncated=mask)) == cause
    counts = skipped([given], {PROBLEMS[0].id: weight}, LearnConfig(mask_truncated=mask))
    assert counts == {name: int(name == cause) for name in CAUSES}


@pytest.mark.parametrize("kl", [0.0, 0.1])
@pytest.mark.parametrize("mask", [True, False])
def test_causes_are_counted_as_the_learner_skips(kl: float, mask: bool) -> None:
    """With a KL to the base model groups that agree are learned from all the same."""
    session = tiny_session(learn__kl=kl, learn__mask_truncated=mask)
    tallies = []
    for number, voted in enumerate(tallies_of(session)):
        reason = "length" if number == 0 else "stop"
        rollouts = tuple(replace(rollout, finish_reason=reason) for rollout in voted.group.rollouts_G)
        tallies.append(replace(voted, group=replace(voted.group, rollouts_G=rollouts)))
    tallies[1] = replace(tallies[1], label=None, clusters=())
    tallies[2] = replace(tallies[2], rewards_G=(1.0,) * 4)
    weights = {PROBLEMS[3].id: 0.0}
    update = Learner(session.policy, session.config).learn(tallies, 1, weights)
    counts = skipped(tallies, weights, session.config.learn)
    assert sum(counts.values()) == update.groups_skipped
    assert counts["cut_off"] == mask
    assert [counts["unanswered"], counts["settled"], counts["equal"]] == [int(kl == 0)] * 3


def report(step: int, groups: int = 2, **causes: int) -> StepReport:
    figures = {f"learn/skipped_{cause}": causes.get(cause, 0) for cause in CAUSES}
    return StepReport(step, {**figures, "learn/groups_used": 0, "learn/groups_skipped": groups})


def test_a_step_says_why_and_once_what_to_set() -> None:
    lessons = Lessons(CONFIG)
    first = lessons.see(report(1, cut_off=2))
    assert first is not None
    assert "step 1: nothing was learned: every completion cut off by the token limit (2 of 2 groups)" in first
    assert "raise sampling.max_new_tokens (now 7)" in first
    assert lessons.see(report(2, cut_off=2)) == (
        "step 2: nothing was learned: every completion cut off by the token limit (2 of 2 groups)"
    )
    mixed = lessons.see(report(3, cut_off=1, agreed=1))
    assert mixed is not None
    assert "(1 of 2 groups), all agree (1 of 2 groups). To change that: take harder problems" in mixed
    assert "max_new_tokens" not in mixed


def test_a_step_that_teaches_something_says_nothing() -> None:
    lessons = Lessons(CONFIG)
    assert lessons.see(report(1, agreed=1)) is None
    assert lessons.see(StepReport(1, {"learn/groups_used": 1, "learn/groups_skipped": 1})) is None, "of an older run"
    assert lessons.conclusion() is None


@pytest.mark.parametrize(
    ("taught", "concluded"),
    [
        ([False], "any step"),
        ([False, False], "any step"),
        ([True], None),
        ([False, True], None),
        ([True, False, False], None),
        ([True, False, False, False], "the last 3 steps"),
        ([False, False, False, True, False], None),
    ],
)
def test_a_run_of_such_steps_ends_with_advice(taught: list[bool], concluded: str | None) -> None:
    lessons = Lessons(CONFIG)
    for step, learned in enumerate(taught, 1):
        lessons.see(report(step, agreed=0 if learned else 2))
    told = lessons.conclusion()
    if concluded is None:
        assert told is None
    else:
        assert told is not None
        assert told.startswith(f"nothing was learned in {concluded}: all agree (")
        assert "a higher sampling.temperature" in told


@pytest.mark.parametrize(
    ("tallies", "learns", "said"),
    [
        ([tally([None, None, None, "4"], cut=3)], False, "75% of the completions were cut off at 7 tokens and have no"),
        ([tally([None, None, None, "4"], cut=2)], False, None),
        ([tally(["4", "5", "6", "7"], cut=4)], False, None),
        (
            [tally(["4", "5", "6", "7"], cut=4)],
            True,
            "100% of the completions were cut off at 7 tokens and are left out",
        ),
        ([tally([None] * 4, cut=4), tally(["4"] * 4), tally(["4"] * 4)], False, None),
        ([], False, None),
    ],
)
def test_a_limit_that_cuts_most_off_is_said(tallies: list[Tally], learns: bool, said: str | None) -> None:
    counted = CutOff(7, learns)
    for each in tallies:
        counted.see(each)
    notice = counted.notice()
    assert notice is None if said is None else notice is not None and notice.startswith(said)
    assert notice is None or notice.endswith("raise sampling.max_new_tokens")
