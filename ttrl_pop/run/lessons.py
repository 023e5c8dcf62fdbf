"""Why a step teaches nothing, and what to set. A run that learns nothing looks like any other until it is measured.

What stood in the way is counted for each group of a step, is a figure of its metrics (`learn/skipped_...`), and is said
from there, so that a resumed run says it of all its steps.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from ttrl_pop.config import Config, LearnConfig
from ttrl_pop.learn.learner import teaches
from ttrl_pop.types import StepReport, Tally

CAUSES = {
    "cut_off": (
        "every completion cut off by the token limit",
        "raise sampling.max_new_tokens (now {limit}), or let cut off completions count with learn.mask_truncated=false",
    ),
    "unanswered": (
        "no completion with an answer",
        "look at what the model writes (RUN/rollouts): read answers otherwise (--extract), ask otherwise (--raw, "
        "--chat), or raise sampling.max_new_tokens (now {limit})",
    ),
    "settled": (
        "weight 0",
        "these problems are left out by guard.skip_risky",
    ),
    "agreed": (
        "all agree",
        "take harder problems, more rollouts (--minds, --samples-per-mind) or a higher sampling.temperature",
    ),
    "equal": (
        "the same reward for every rollout",
        "take another --reward, or more rollouts (--minds, --samples-per-mind)",
    ),
}
"""Why a group teaches nothing → in words, and what to do; the first that fits counts."""

SERIES = 3
"""Steps at the end of a run that taught nothing, from which on that is said, where others did."""

MOST = 0.5
"""Share of completions above which they are most."""


def skipped(tallies: Sequence[Tally], weights: Mapping[str, float], learn: LearnConfig) -> dict[str, int]:
    """Groups of a step that teach nothing, counted by cause; every cause is there."""
    found = Counter(cause_of(tally, weights.get(tally.group.problem.id, 1.0), learn) for tally in tallies)
    return {cause: found[cause] for cause in CAUSES}


def cause_of(tally: Tally, weight: float, learn: LearnConfig) -> str | None:
    """Why a group teaches nothing; None where it does, as with a KL every rollout that counts has a say."""
    cut = [rollout.finish_reason == "length" for rollout in tally.group.rollouts_G[: learn.rollouts]]
    if learn.mask_truncated and all(cut):
        return "cut_off"
    if learn.kl > 0 or teaches(tally, weight, learn):
        return None
    if tally.label is None and not tally.clusters:
        return "unanswered"
    if weight <= 0:
        return "settled"
    return "agreed" if len(tally.clusters) == 1 and not tally.abstained else "equal"


class Lessons:
    """Sees every step of a run in order, and says which taught nothing."""

    def __init__(self, config: Config) -> None:
        self._limit = config.sampling.max_new_tokens
        self._steps = self._in_a_row = 0
        self._causes: Counter[str] = Counter()
        """Groups by cause, in the newest steps in a row that taught nothing."""
        self._advised: set[str] = set()

    def see(self, report: StepReport) -> str | None:
        """Take in a step; returns why it taught nothing, if so. What to do is said once for each cause."""
        self._steps += 1
        causes = {cause: int(report.metrics.get(f"learn/skipped_{cause}") or 0) for cause in CAUSES}
        groups = int(report.metrics.get("learn/groups_used") or 0) + int(
            report.metrics.get("learn/groups_skipped") or 0
        )
        if not groups or sum(causes.values()) < groups:
            self._in_a_row = 0
            self._causes.clear()
            return None
        self._in_a_row += 1
        self._causes.update(causes)
        told = self._told(causes, self._advised)
        self._advised |= {cause for cause, count in causes.items() if count}
        return f"step {report.step}: nothing was learned: {told}"

    def conclusion(self) -> str | None:
        """What is to be said at the end of a run whose last steps, or all of them, taught nothing."""
        if not self._in_a_row or self._in_a_row < min(SERIES, self._steps):
            return None
        which = "any step" if self._in_a_row == self._steps else f"the last {self._in_a_row} steps"
        return f"nothing was learned in {which}: {self._told(self._causes, frozenset())}"

    def _told(self, causes: Mapping[str, int], advised: set[str] | frozenset[str]) -> str:
        present = [cause for cause in CAUSES if causes[cause]]
        count = sum(causes.values())
        what = ", ".join(f"{CAUSES[cause][0]} ({causes[cause]} of {count} groups)" for cause in present)
        advice = "; ".join(CAUSES[cause][1].format(limit=self._limit) for cause in present if cause not in advised)
        return f"{what}. To change that: {advice}" if advice else what


class CutOff:
    """Counts completions that the token limit made useless."""

    def __init__(self, limit: int, learns: bool = False) -> None:
        """
        Args:
            limit: tokens of a completion.
            learns: whether completions that were cut off are left out of a loss, so that their answers count little.
        """
        self._limit, self._learns = limit, learns
        self._cut = self._all = 0

    def see(self, tally: Tally) -> None:
        """Take in a group."""
        for rollout, answer in zip(tally.group.rollouts_G, tally.answers_G, strict=True):
            self._all += 1
            self._cut += rollout.finish_reason == "length" and (self._learns or answer is None)

    def notice(self) -> str | None:
        """What is to be said where most completions were cut off, and what to set."""
        if self._cut <= MOST * self._all:
            return None
        lost = "are left out of the loss" if self._learns else "have no answer"
        return (
            f"{self._cut / self._all:.0%} of the completions were cut off at {self._limit} tokens and {lost}; raise "
            "sampling.max_new_tokens"
        )
