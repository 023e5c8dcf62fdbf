"""The collapse alarm on made-up runs, one for each rule, and on a run that only gets better."""

from collections.abc import Iterable

import pytest

from ttrl_pop.run.collapse import Watch
from ttrl_pop.types import Metrics

HEALTHY: Metrics = {
    "vote/agreement": 0.5,
    "rollout/length": 40.0,
    "rollout/entropy": 1.2,
    "vote/abstained": 0.2,
    "vote/commonest_label": 0.1,
}


def alarms(rows: Iterable[Metrics]) -> list[str | None]:
    watch = Watch()
    return [watch.see(HEALTHY | row) for row in rows]


COLLAPSES: dict[str, tuple[Metrics, Metrics]] = {
    "agreement 0.96 on completions of 19 tokens, 40 at the start": (
        {"vote/agreement": 0.96, "rollout/length": 19.0},
        {"vote/agreement": 0.94, "rollout/length": 19.0},
    ),
    "entropy 0.01 nats per token, 1.2 at the start": ({"rollout/entropy": 0.01}, {"rollout/entropy": 0.03}),
    "50% of rollouts without an answer, 20% at the start": ({"vote/abstained": 0.5}, {"vote/abstained": 0.4}),
    "one answer is the label of 70% of the problems, of 10% at the start": (
        {"vote/commonest_label": 0.7},
        {"vote/commonest_label": 0.55},
    ),
}


@pytest.mark.parametrize("text", COLLAPSES)
def test_each_rule_goes_off_once_the_newest_steps_show_it(text: str) -> None:
    bad, harmless = COLLAPSES[text]
    assert alarms([{}] * 3 + [bad] * 4) == [None] * 5 + [text] * 2
    assert alarms([{}] * 3 + [harmless] * 4) == [None] * 7
    assert alarms([{}] * 3 + [bad, bad, {}, bad, {}, {}, {}])[-1] is None
    # A run that began like this has not collapsed.
    assert alarms([bad] * 9) == [None] * 9


def test_a_run_that_only_gets_better_sets_nothing_off() -> None:
    better: Metrics = {"vote/agreement": 0.99, "rollout/length": 39.0, "rollout/entropy": 0.22, "vote/abstained": 0.0}
    assert alarms([{}] * 3 + [better] * 20) == [None] * 23


def test_figures_that_are_missing_set_nothing_off() -> None:
    assert alarms([{"rollout/entropy": None}] * 8) == [None] * 8
