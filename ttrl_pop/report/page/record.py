"""What is told of a run: its settings, figures of steps, and every visit of a problem. Frozen, and without a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Interval: TypeAlias = tuple[float, float]

LONGEST = 2000
"""Characters of a text that are kept; there are two for each vote of a run."""


@dataclass(frozen=True, slots=True)
class Voice:
    """What one mind wrote about a problem at one visit."""

    mind: int
    """The mind's seed."""
    text: str
    answer: str | None
    """None is an abstention."""
    finished: bool
    """False where the token limit cut the completion off."""


@dataclass(frozen=True, slots=True)
class Visit:
    """The vote on one problem in one step."""

    step: int
    label: str | None
    """The majority's answer; None where nobody answered."""
    flipped: bool
    """Whether the label differs from the one of the visit before."""
    right: bool | None
    """Whether the label equals gold; None without gold."""
    accuracy: float | None
    """Share of the rollouts whose own answer equals gold; None without gold."""
    agreement: float
    margin: float
    votes: tuple[tuple[str, int], ...]
    """Each answer and how many rollouts gave it, as the vote orders them."""
    abstained: int
    """Rollouts without an answer."""
    voices: tuple[Voice, ...]
    """One of the majority and, if there is a second rollout, one against it: of the strongest rival, else one that
    abstained, else another of the majority."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of all minds to one problem in a survey, where nobody learns: before training, or after it."""

    label: str | None
    agreement: float
    right: bool | None = None
    accuracy: float | None = None
    """Share of the rollouts that are right; None without gold."""


@dataclass(frozen=True, slots=True)
class ProblemRecord:
    """One problem of a run, and what became of it."""

    id: str
    prompt: str
    """As a person reads it: turns of a chat each behind its role."""
    gold: str | None
    visits: tuple[Visit, ...]
    """In the order of steps."""
    before: Answer | None = None
    after: Answer | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run, as far as it has come."""

    name: str
    settings: Mapping[str, Any]
    """Every setting by its dotted key."""
    steps: int
    """Steps that the run is to do."""
    metrics: tuple[Mapping[str, Any], ...]
    """Rows of metrics.jsonl."""
    problems: tuple[ProblemRecord, ...]
    """In the order of the input."""
    finished: bool
    """Whether all steps are done, and all answers written that the settings ask for."""
    seed: int = 0
    """Keys the bootstrap."""
    notices: tuple[str, ...] = ()
    """What of the run is damaged or gone, and is not told."""
    intervals: Mapping[str, Mapping[int, Interval]] = field(default_factory=dict)
    """Figure of metrics.jsonl → step → its 95 % interval over the problems of that step."""


def cut(text: str, limit: int = LONGEST) -> str:
    """`text`, or where it is long its beginning and its end, where answers stand, and how much is left out."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters …\n{text[-half:]}"
