"""What is known of each problem over time, without labels; saved with every checkpoint, shown by `ttrl-pop problems`.

A label that changed since the last visit is a flip (TTRL-Guard, arXiv 2605.19444).
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from ttrl_pop.types import Same, Tally

RECENT = 4
"""Visits of which it is kept whether the label flipped."""

SUSPECT = 0.6
"""Mean agreement above which a label that never flipped is suspect."""

WINDOW = 5
"""Visits whose agreement is kept."""

Count = Annotated[int, Field(ge=0, lt=2**31)]

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, slots=True)
class ProblemState:
    """One problem, as its last visit left it."""

    id: str
    label: str | None
    """The newest label; a visit at which nobody answered leaves the one before."""
    first: str | None
    """The first label that it had, which stays: the base model's, or one of the first pass over the problems."""
    agreement: Share
    margin: Share
    visits: Annotated[Count, Field(ge=1)]
    flips: Count
    """Visits at which the label differed from the one before."""
    recent: Annotated[Count, Field(lt=2**RECENT)]
    """The last `RECENT` visits, newest in the lowest bit: 1 where the label flipped."""
    window: Annotated[tuple[Share, ...], Field(min_length=1, max_length=WINDOW)]
    """Agreement at the last `WINDOW` visits, oldest first."""
    suspected: Count
    """Visits at which the problem was suspect."""
    last_seen: Count
    """Step of the last visit."""

    @property
    def flip_rate(self) -> float:
        """Flips over the visits at which one was possible."""
        return self.flips / (self.visits - 1) if self.visits > 1 else 0.0

    @property
    def is_suspect(self) -> bool:
        """Whether its label never flipped and has been agreed on for long, which a wrong one may be, too."""
        return _suspect(self.flips, self.window)


_STATE = TypeAdapter(ProblemState)


def _suspect(flips: int, window: tuple[float, ...]) -> bool:
    return not flips and len(window) == WINDOW and fmean(window) > SUSPECT


class History(Mapping[str, ProblemState]):
    """States by problem id, in the order of first visits. Immutable: a step that is cut short leaves the old one."""

    __slots__ = ("_states",)

    def __init__(self, states: Iterable[ProblemState] = ()) -> None:
        self._states = {state.id: state for state in states}

    def __getitem__(self, problem_id: str) -> ProblemState:
        return self._states[problem_id]

    def __iter__(self) -> Any:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    def after(self, tallies: Iterable[Tally], step: int, same: Same) -> "History":
        """The history with one more visit of each of these problems."""
        states = dict(self._states)
        for tally in tallies:
            problem_id = tally.group.problem.id
            before = states.get(problem_id)
            label = tally.label if tally.label is not None or before is None else before.label
            flipped = before is not None and before.label is not None and not same(before.label, label)
            flips = (before.flips if before else 0) + flipped
            window = ((before.window if before else ()) + (tally.agreement,))[-WINDOW:]
            states[problem_id] = ProblemState(
                id=problem_id,
                label=label,
                first=before.first if before and before.first is not None else label,
                agreement=tally.agreement,
                margin=tally.margin,
                visits=(before.visits if before else 0) + 1,
                flips=flips,
                recent=((before.recent if before else 0) << 1 | flipped) & ((1 << RECENT) - 1),
                window=window,
                suspected=(before.suspected if before else 0) + _suspect(flips, window),
                last_seen=step,
            )
        return History(states.values())

    def flip_share(self, before: "History", problem_ids: Iterable[str]) -> float | None:
        """Share of these problems whose label changed since `before`; None where none had been seen."""
        seen = [problem_id for problem_id in problem_ids if problem_id in before]
        flips = sum(self[problem_id].flips - before[problem_id].flips for problem_id in seen)
        return flips / len(seen) if seen else None

    def first_share(self, tally: Tally, same: Same) -> float:
        """Share of a group's votes that its problem's first label has; 0 where nobody gives that answer."""
        first = self[tally.group.problem.id].first
        return next((float(cluster.share) for cluster in tally.clusters if same(cluster.answer, first)), 0.0)

    def moved(self, same: Same) -> float:
        """Share of the problems whose label is another than the first."""
        return sum(not same(state.label, state.first) for state in self.values() if state.first) / max(1, len(self))

    @classmethod
    def of_rows(cls, rows: Iterable[Mapping[str, Any]]) -> "History":
        """The history that `rows` gave.

        Raises:
            ValueError: a row is not the state of a problem; says which number it has, and why.
        """
        states = []
        for number, row in enumerate(rows, 1):
            try:
                state = _STATE.validate_python(row)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                raise ValueError(f"row {number}, {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
            if state.flips >= state.visits:
                raise ValueError(f"row {number}: {state.flips} flips in {state.visits} visits")
            states.append(state)
        return cls(states)

    def rows(self) -> list[dict[str, Any]]:
        """Each state as a row of a checkpoint's problems.jsonl."""
        return [asdict(state) for state in self._states.values()]
