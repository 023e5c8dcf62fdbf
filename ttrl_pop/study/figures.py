"""A finished run → its figures, problem by problem: what arms are compared by.

Tokens are those of completions that the steps and the final answers wrote. Not counted: the baseline, which is there
for measuring, prompts, the search for sigma, and rollouts that only elect labels (`vote.labels`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ttrl_pop.report.gold import is_right
from ttrl_pop.report.measures import at_k, ks_up_to
from ttrl_pop.store import files, identity, reading
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.types import Same

AFTER = {"accuracy": "accuracy", "label_accuracy": "correct", "agreement": "agreement"}
"""Figure → field of an answer's row."""

GAIN = {"gain": "accuracy", "label_gain": "correct", "agreement_gain": "agreement"}
"""Figure → field of which it is the change by training."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What came of one run."""

    per_problem: Mapping[str, Mapping[str, float | None]]
    """Problem → figure → value; None where it is not known."""
    before: Mapping[str, bool]
    """Whether the label was right before training, of problems of which that is known."""
    after: Mapping[str, bool]
    tokens: int
    """Tokens of completions, of the steps and of the final answers."""
    rollouts: int
    untrained_length: float
    """Tokens of a completion before training, or over the whole run where that was not measured."""
    entropy: float | None
    """Entropy of a token in the first step, in nats; None without steps."""


def figures_of(run: RunDirectory, gold: Mapping[str, str], same: Same) -> Figures:
    """The figures of a run that has ended.

    Args:
        gold: gold answers by problem id.
        same: whether two answers are equal.

    Raises:
        DamagedError: a file of it is not what the run wrote.
    """
    known = identity.load(run)
    after = {row["id"]: row for row in files.read_lines(run.answers)}
    before = {}
    if run.baseline.name in known.files:
        identity.check(run, known, run.baseline.name)
        before = {row["id"]: row for row in files.read_lines(run.baseline)}
    rollouts, tokens = _spent(run, known, "answers")
    steps = list(files.read_lines(run.metrics)) if run.metrics.exists() else []
    for step in steps:
        rollouts += step["rollout/count"]
        tokens += round(step["rollout/count"] * step["rollout/length"])
    first, written = _spent(run, known, "baseline")
    return Figures(
        per_problem={
            problem: {
                **{name: _number(row.get(key)) for name, key in AFTER.items()},
                **{name: _change(before.get(problem, {}).get(key), row.get(key)) for name, key in GAIN.items()},
                **_at_k(row, gold.get(problem), same),
            }
            for problem, row in after.items()
        },
        before={problem: row["correct"] for problem, row in before.items() if "correct" in row},
        after={problem: row["correct"] for problem, row in after.items() if "correct" in row},
        tokens=tokens,
        rollouts=rollouts,
        untrained_length=written / first if first else tokens / max(1, rollouts),
        entropy=steps[0]["rollout/entropy"] if steps else None,
    )


def _spent(run: RunDirectory, known: identity.Identity, survey: str) -> tuple[int, int]:
    """Rollouts and tokens of a survey; none where there was none."""
    path = run.spent(run.path / f"{survey}.jsonl")
    if path.name not in known.files:
        return 0, 0
    identity.check(run, known, path.name)
    row = reading.read_object(path)
    return row["rollouts"], row["tokens"]


def _at_k(row: Mapping[str, Any], gold: str | None, same: Same) -> dict[str, float | None]:
    """pass@k and maj@k of an answer's row."""
    if gold is None:
        return {}
    votes: dict[str, int] = row["votes"]
    size = row["rollouts"]
    elected = [is_right(answer, gold, same) for answer in votes]
    right = round(row["accuracy"] * size)
    return at_k(right, list(votes.values()), elected, row["abstained"], ks_up_to(size))


def _number(value: float | bool | None) -> float | None:
    return None if value is None else float(value)


def _change(before: float | bool | None, after: float | bool | None) -> float | None:
    return None if before is None or after is None else float(after) - float(before)
