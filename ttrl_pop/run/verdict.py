"""What a run has come to, in plain words, from figures that need no gold answer.

Agreement alone tells nothing: it rises where a model learns, where it only sharpens, and through a collapse. What tells
them apart is the first label of each problem, which stays as it was (`ttrl_pop.run.history.ProblemState.first`): minds
that learn move some labels and keep most, minds that sharpen keep all, and minds that collapse leave them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from ttrl_pop.run.collapse import WINDOW
from ttrl_pop.run.history import History
from ttrl_pop.types import Metrics

STILL = 3
"""Newest visits of a problem without a flip, after which its label no longer moves."""

FEW = 0.02
"""Share of problems that may still move where labels no longer do."""

RISE = 0.05
"""Change of a mean over `WINDOW` steps that is one."""

FALL = 0.2
"""Share of votes lost, by which a run has left what it began with."""

Kind = Literal[
    "learning", "settled", "sharpening only", "collapsing", "too early to tell", "no change", "nothing learned"
]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run has come to."""

    kind: Kind
    why: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.why}"


def soundness(metrics: Metrics) -> float:
    """How much a policy is to be trusted, from 0 to 1, by the figures of the step whose rollouts it wrote: the share of
    votes for the first labels, times the share of labels that did not flip.

    Minds that agree on an answer that was not the first label count for nothing. At a problem's first visit there is
    nothing else to go by, and it is agreement.
    """
    first, flips = metrics.get("vote/first_label"), metrics.get("vote/flip_rate")
    return (first or 0.0) * (1.0 - (flips or 0.0))


def settled(rows: Sequence[Mapping[str, Any]], history: History, problems: int) -> bool:
    """Whether labels no longer move: every problem has been visited often enough to tell, and nearly none has flipped
    in its newest visits. A run that had nothing to learn from never settles.

    Args:
        rows: of metrics.jsonl.
        problems: how many there are.
    """
    if len(history) < problems or any(state.visits <= STILL for state in history.values()):
        return False
    moving = sum(bool(state.recent & ((1 << STILL) - 1)) for state in history.values())
    return moving <= FEW * problems and _barren(rows) is None


def judge(rows: Sequence[Mapping[str, Any]], history: History, moved: float, problems: int) -> Verdict:
    """The verdict on the steps done.

    Args:
        rows: of metrics.jsonl.
        moved: share of the problems seen whose label is another than the first.
        problems: how many there are.
    """
    if (barren := _barren(rows)) is not None:
        return Verdict("nothing learned", barren)
    if len(rows) < 2 * WINDOW:
        return Verdict("too early to tell", f"it takes {2 * WINDOW} steps, and {len(rows)} are done")
    if (alarm := next((row["alarm"] for row in reversed(rows[-WINDOW:]) if row.get("alarm")), None)) is not None:
        return Verdict("collapsing", alarm)
    (before, now), (first_before, first_now) = (_ends(rows, key) for key in ("vote/agreement", "vote/first_label"))
    if first_now < first_before - FALL:
        return Verdict(
            "collapsing",
            f"{first_now:.0%} of the votes are for the labels of the beginning, of which it had {first_before:.0%}, "
            f"while agreement is {now:.2f}",
        )
    if now < before - FALL:
        return Verdict("collapsing", f"minds agree ever less: {now:.2f}, {before:.2f} at the start")
    course = f"agreement {before:.2f} → {now:.2f}, {moved:.0%} of the labels are others than at first"
    if moved <= FEW and now > before + RISE:
        return Verdict("sharpening only", f"{course}: minds agree more on what they said anyway")
    if settled(rows, history, problems):
        return Verdict("settled", f"{course}, and none moves any more; more steps teach nothing new")
    if moved > FEW and now > before + RISE:
        return Verdict("learning", f"{course}, and some still move")
    return Verdict("no change", course)


def _barren(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Why there was nothing to learn from in any step; None where there was in one."""
    which = f"in {len(rows)} steps" if len(rows) > 1 else "in the one step"
    if rows and not any(row.get("vote/agreement") for row in rows):
        return f"no answer was read {which}, so no problem had a label to learn from"
    if rows and all(_lost(row) for row in rows):
        return f"every completion {which} was cut off by the token limit or had no answer"
    return None


def _lost(row: Mapping[str, Any]) -> bool:
    """Whether each group of a step was left out, its completions cut off or without an answer."""
    skipped = row.get("learn/groups_skipped") or 0
    lost = (row.get("learn/skipped_cut_off") or 0) + (row.get("learn/skipped_unanswered") or 0)
    return bool(skipped) and not row.get("learn/groups_used") and lost == skipped


def _ends(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[float, float]:
    """Mean of a figure over the first and over the newest steps."""
    first, newest = (fmean(float(row.get(key) or 0.0) for row in part) for part in (rows[:WINDOW], rows[-WINDOW:]))
    return first, newest
