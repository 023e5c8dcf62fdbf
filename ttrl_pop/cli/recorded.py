"""A run directory as `ttrl-pop report` and `ttrl-pop view` tell of it. Needs no torch.

A run may be under way, stopped or damaged. Without its identity, settings, problems or gold answers it cannot be told,
which is said in a line; of all else what is whole is told, and what is not is named.

Simplifications:

1. Votes are counted anew from the answers in RUN/rollouts, by the run's grader and weights. Where `vote.labels` lets
   others elect the label, the page shows the minds' majority.
2. Of each vote, the texts of two minds are kept.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from ttrl_pop.cli.given import Given
from ttrl_pop.cli.inputs import flat, stored_problems
from ttrl_pop.cli.trust import NAMING, check_trusted
from ttrl_pop.config import Config
from ttrl_pop.config_file import load_config
from ttrl_pop.errors import DamagedError, UsageError
from ttrl_pop.report.gold import answers_correct, is_right
from ttrl_pop.report.page.intervals import step_intervals
from ttrl_pop.report.page.record import Answer, Interval, ProblemRecord, RunRecord, Visit, Voice, cut
from ttrl_pop.store import files, identity, reading
from ttrl_pop.store.directory import find
from ttrl_pop.store.identity import CONFIG, GOLD, Identity
from ttrl_pop.types import Group, Mind, Problem, Rollout, Tally
from ttrl_pop.vote.clusters import cluster_answers
from ttrl_pop.vote.rules import Rules, build_grader

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

Finite = Annotated[float, Field(allow_inf_nan=False)]

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _RolloutRow:
    """What is read of a row of RUN/rollouts."""

    id: str
    mind: int
    text: str
    answer: str | None
    finish_reason: Literal["stop", "length"]
    logprobs: tuple[Finite, ...] = ()


@dataclass(frozen=True, slots=True)
class _AnswerRow:
    """What is read of a row of baseline.jsonl or answers.jsonl."""

    id: str
    answer: str | None
    agreement: Share
    correct: bool | None = None
    accuracy: Share | None = None


@dataclass(frozen=True, slots=True)
class _Step:
    """The votes of one step, by problem id, and the intervals of its figures."""

    stamp: tuple[int, ...]
    """Tells the file that they were read from apart from another one of its name."""
    visits: Mapping[str, Visit]
    intervals: Mapping[str, Interval]


_READERS: Mapping[type, Any] = {kind: TypeAdapter(kind) for kind in (_RolloutRow, _AnswerRow)}


class Recorder:
    """One run directory, read again whenever it has grown: steps that are unchanged are not."""

    def __init__(self, path: Path, trust: bool = False) -> None:
        """
        Args:
            path: a run directory, or a path in one.
            trust: whether a grader that only the run's own files name may be imported.

        Raises:
            UsageError: it is no run, or names code that is not trusted.
            DamagedError: what no run can be without is damaged.
        """
        self.run, _ = find(path)
        self._trust = trust
        self._begin(identity.load(self.run))

    def _begin(self, known: Identity) -> None:
        """Read what a run keeps as long as it is the same."""
        self._made_of = _made_of(known)
        config = self._config(known)
        check_trusted(self.run, config, Given(trust=self._trust), unused=NAMING - {"vote.grader"})
        self._problems = stored_problems(self.run, known)
        self._rules = Rules(build_grader(config.vote), None, weight=config.vote.weight)
        self._steps: dict[int, _Step] = {}
        self._same: dict[tuple[str, str], bool] = {}

    def stamp(self) -> tuple[object, ...]:
        """What changes whenever the run has something new to tell."""
        run = self.run
        return tuple(_stamp(path) for path in (run.identity, run.metrics, run.baseline, run.answers))

    def record(self) -> RunRecord:
        """The run as it stands now.

        Raises:
            DamagedError: what no run can be without is damaged.
        """
        known = identity.load(self.run)
        if _made_of(known) != self._made_of:
            # Another run stands in its place, or this one goes on with other settings.
            self._begin(known)
        config = self._config(known)
        notices: list[str] = []
        metrics = tuple(self._metrics(notices))
        before = self._survey(known, self.run.baseline, notices)
        after = self._survey(known, self.run.answers, notices)
        steps = {row["step"]: step for row in metrics if (step := self._step(row, config, notices))}
        return RunRecord(
            name=Path(os.path.realpath(self.run.path)).name,
            settings=flat(config.model_dump(mode="json")),
            steps=config.steps,
            metrics=metrics,
            problems=tuple(
                ProblemRecord(
                    id=problem.id,
                    prompt=cut(_prompt(problem)),
                    gold=self._problems.answers.get(problem.id),
                    visits=tuple(self._visits(problem.id, steps.values())),
                    before=before.get(problem.id),
                    after=after.get(problem.id),
                )
                for problem in self._problems.problems
            ),
            finished=self._has_ended(known, len(metrics), config.steps) and (bool(after) or not config.answers),
            seed=config.seed,
            notices=tuple(notices),
            intervals=_by_figure(steps),
        )

    def _has_ended(self, known: Identity, done: int, steps: int) -> bool:
        """Whether training came to its end, which may be before the last step (`guard.until_settled`)."""
        verdict = self.run.verdict
        if done >= steps:
            return True
        if verdict.name not in known.files or identity.flaw(self.run, known, verdict.name):
            return False
        return reading.read_object(verdict).get("steps") == done

    def _config(self, known: Identity) -> Config:
        return load_config(self.run.config, {}, identity.read(self.run, known, CONFIG))

    def _metrics(self, notices: list[str]) -> Iterator[Mapping[str, Any]]:
        """Rows of whole steps. A last line without an end is one that is being written."""
        path = self.run.metrics
        if not os.path.lexists(path) and not os.path.lexists(self.run.rollouts(1)):
            return
        step = 0
        try:
            for line in files.whole_lines(path):
                row = reading.parse_object(path, line)
                if row.get("step") != step + 1 or type(row["step"]) is not int:
                    raise DamagedError(path, f"does not go on with step {step + 1}")
                step += 1
                yield row
        except DamagedError as error:
            notices.append(f"{path.name} {error.reason}: steps from {step + 1} on are not shown")

    def _survey(self, known: Identity, path: Path, notices: list[str]) -> dict[str, Answer]:
        """Final answers by problem id; nothing where they are not there yet."""
        listed = path.name in known.files
        # A run that goes on for more steps has taken its old answers away.
        if not os.path.lexists(path) and (path == self.run.answers or not listed):
            return {}
        try:
            if flaw := identity.flaw(self.run, known, path.name) if listed else "was not written by this run":
                raise DamagedError(path, flaw)
            rows = [_read(_AnswerRow, path, row, number) for number, row in enumerate(files.read_lines(path), 1)]
        except DamagedError as error:
            notices.append(f"{path.name} {error.reason}: its answers are not shown")
            return {}
        return {row.id: Answer(row.answer, row.agreement, row.correct, row.accuracy) for row in rows}

    def _step(self, row: Mapping[str, Any], config: Config, notices: list[str]) -> _Step | None:
        """The votes of the step that a row of metrics tells of; None where its rollouts are damaged or gone."""
        path = self.run.rollouts(row["step"])
        stamp = _stamp(path)
        known = self._steps.get(row["step"])
        if known is None or known.stamp != stamp:
            try:
                visits = {
                    group.problem.id: self._visit(group, answers, row["step"]) for group, answers in _groups(path)
                }
            except UsageError as error:
                reason = error.reason if isinstance(error, DamagedError) else str(error)
                notices.append(f"rollouts/{path.name} {reason}: its votes are not shown")
                return None
            known = _Step(stamp, visits, step_intervals([*visits.values()], row, config.seed))
            self._steps[row["step"]] = known
        return known

    def _visit(self, group: Group, answers_G: Sequence[str | None], step: int) -> Visit:
        grader = self._rules.grader
        grader.forget()
        keys_G = ["" if answer is None else grader.key(answer) for answer in answers_G]
        answers_G = [answer if key else None for answer, key in zip(answers_G, keys_G, strict=True)]
        clusters = cluster_answers(group.rollouts_G, answers_G, keys_G, self._rules)
        label, label_cluster = (clusters[0].answer, 0) if clusters else (None, None)
        tally = Tally(group, tuple(answers_G), clusters, label, label_cluster, ())
        gold = self._problems.answers.get(group.problem.id)
        correct_G = None if gold is None else answers_correct(answers_G, gold, self._are_same)
        return Visit(
            step=step,
            label=None if label is None else cut(label),
            flipped=False,
            right=None if gold is None else is_right(label, gold, self._are_same),
            accuracy=None if correct_G is None else sum(correct_G) / len(correct_G),
            agreement=tally.agreement,
            margin=tally.margin,
            votes=tuple((cut(cluster.answer), len(cluster.members)) for cluster in clusters),
            abstained=tally.abstained,
            voices=tuple(_voices(tally)),
        )

    def _visits(self, problem: str, steps: Iterable[_Step]) -> Iterator[Visit]:
        """Visits of a problem, with those marked at which the label changed."""
        before: str | None = None
        for step in steps:
            if (visit := step.visits.get(problem)) is None:
                continue
            flipped = before is not None and visit.label is not None and not self._are_same(before, visit.label)
            before = visit.label if visit.label is not None else before
            yield replace(visit, flipped=flipped)

    def _are_same(self, a: str | None, b: str | None) -> bool:
        """The grader's verdict, asked once for each pair."""
        if a is None or b is None:
            return False
        if (a, b) not in self._same:
            self._same[a, b] = self._rules.grader.same(a, b)
        return self._same[a, b]


def _made_of(known: Identity) -> tuple[object, ...]:
    """What tells a run, and the settings it goes on with, from another one in its place."""
    return known.model, known.tokenizer, known.problems, *(known.files.get(name) for name in (CONFIG, GOLD))


def _groups(path: Path) -> Iterator[tuple[Group, list[str | None]]]:
    """Each problem's rollouts of a step, with their answers. Of the tokens nothing is kept."""
    rows: dict[str, list[_RolloutRow]] = {}
    for number, row in enumerate(files.read_lines(path), 1):
        found = _read(_RolloutRow, path, row, number)
        rows.setdefault(found.id, []).append(found)
    for index, (problem, found_G) in enumerate(rows.items()):
        rollouts_G = tuple(
            Rollout(Mind(row.mind), (), (), row.logprobs, row.text, row.finish_reason, 0) for row in found_G
        )
        yield Group(Problem(problem, "", index), rollouts_G), [row.answer for row in found_G]


def _voices(tally: Tally) -> Iterator[Voice]:
    """A rollout of the majority, a finished one where there is one, and one against it; see `Visit.voices`."""
    rollouts_G, answers_G = tally.group.rollouts_G, tally.answers_G
    silent = [i for i, answer in enumerate(answers_G) if answer is None]
    parts = [*(cluster.members for cluster in tally.clusters[:2]), silent]
    firsts = [min(part, key=lambda i: (rollouts_G[i].finish_reason != "stop", i)) for part in parts if part]
    # All agree: another of them.
    others = [i for i in range(len(rollouts_G)) if i not in firsts]
    for i in (firsts + others)[:2]:
        rollout = rollouts_G[i]
        answer = answers_G[i]
        yield Voice(
            mind=rollout.mind.seed,
            text=cut(rollout.text),
            answer=None if answer is None else cut(answer),
            finished=rollout.finish_reason == "stop",
        )


def _by_figure(steps: Mapping[int, _Step]) -> dict[str, dict[int, Interval]]:
    found: dict[str, dict[int, Interval]] = {}
    for number, step in steps.items():
        for figure, interval in step.intervals.items():
            found.setdefault(figure, {})[number] = interval
    return found


def _prompt(problem: Problem) -> str:
    """A prompt as a person reads it; the role of a lone turn says nothing."""
    if isinstance(problem.prompt, str):
        return problem.prompt
    if len(problem.prompt) == 1:
        return problem.prompt[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in problem.prompt)


def _read(kind: type[R], path: Path, row: Mapping[str, Any], number: int) -> R:
    """A row as what it is read for.

    Raises:
        DamagedError: it is not what was written.
    """
    try:
        found: R = _READERS[kind].validate_python(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DamagedError(path, f"row {number}, {where}: {first['msg']}") from None
    return found


def _stamp(path: Path) -> tuple[int, ...]:
    """Tells a file apart from one that replaces it; empty where there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns
