"""Records of runs as the data of a page: plain values for JSON, with every text made visible and within a budget.

    {"runs": [RUN, …], "problems": [{"id", "prompt", "gold"}, …], "settings": [SETTING, …], "charts": [CHART, …],
     "texts": {"spec", "places": [[[x, y], …] for each run]}}, the last where texts are compared

A run's `rows` stand in the order of `problems`. A visit is a list: step, number of its label among the row's `answers`
(-1: none), 1 right / 0 wrong / -1 unknown, 1 where the label flipped, agreement in thousandths, rollouts without an
answer, rollouts of answers that are not listed, and then pairs of an answer's number and its rollouts.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ttrl_pop import __version__
from ttrl_pop.report.estimators import bootstrap_difference, bootstrap_interval, mean
from ttrl_pop.report.gold import outcome_table
from ttrl_pop.report.page.charts import CURVES, chart, scatter
from ttrl_pop.report.page.record import Answer, ProblemRecord, RunRecord, Visit
from ttrl_pop.text import safe

TEXTS = 700_000
"""Bytes of the texts of minds on a page, as they stand in it. Last visits come first, then first ones, then flips."""

PROMPTS = 400_000
"""Bytes of the prompts on a page; longer ones are cut where all together have more."""

VISITS = 1_800_000
"""Bytes of all visits on a page, about."""

LISTED = (2, 6)
"""Answers of a visit that are listed, those with most votes: at least and at most, as there is room."""

VISIT, ANSWER = 20, 5
"""Bytes that a visit takes without answers, and that an answer in it takes."""

SHOWN = 120
"""Characters of an answer, an id or a setting."""

NOTICE = 470
"""Characters of a notice or an alarm."""

SUMMARY: dict[str, Callable[[Answer], float | None]] = {
    "agreement": lambda answer: answer.agreement,
    "rollout accuracy": lambda answer: answer.accuracy,
    "majority accuracy": lambda answer: None if answer.right is None else float(answer.right),
}
"""Figure of before and after → its part of one problem."""


def page_data(
    runs: Sequence[RunRecord],
    defaults: Mapping[str, Any],
    places: Sequence[Sequence[Sequence[float]]] | None = None,
) -> dict[str, Any]:
    """The data of a page that puts `runs` side by side.

    Args:
        defaults: every setting that nobody has set, by dotted key.
        places: where the texts of each run are drawn, as x and y; None: they are not.

    Raises:
        UsageError: Vega-Altair is not there.
    """
    problems = _problems(runs)
    chosen = _chosen(runs)
    listed = _listed(runs)
    steps = max((len(run.metrics) for run in runs), default=0)
    curves = [curve for curve in CURVES if any(_has(run, curve.figure) for run in runs)]
    return {
        "version": __version__,
        "runs": [_run(run, problems, chosen[index], listed) for index, run in enumerate(runs)],
        "problems": list(_questions(problems.values())),
        "settings": list(_settings(runs, defaults)),
        "charts": [
            {
                "figure": curve.figure,
                "name": curve.name,
                "meaning": curve.meaning,
                "spec": chart(
                    curve,
                    len(runs),
                    steps,
                    bands=any(curve.figure in run.intervals for run in runs),
                    alarms=any(row.get("alarm") for run in runs for row in run.metrics),
                ),
            }
            for curve in curves
        ],
        **({} if places is None else {"texts": {"spec": scatter(len(runs)), "places": places}}),
    }


def embedded(value: Any) -> str:
    """`value` as JSON that can stand in a script element: no markup, no line separator, no lone surrogate in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def readable(text: str) -> str:
    """`text` with its lines, and in them every character that does not print or changes its neighbours made visible."""
    return "\n".join(safe(line, len(line)) for line in text.replace("\r\n", "\n").split("\n"))


def number(value: Any) -> float | int | None:
    """A finite number to six digits; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        rounded = float(f"{float(value):.6g}")
    except OverflowError:
        return None
    if not math.isfinite(rounded):
        return None
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


# --- all runs ---


def _problems(runs: Sequence[RunRecord]) -> dict[tuple[str, str], ProblemRecord]:
    """Problems of all runs, each once: in two runs it is the same one where id and prompt are."""
    found: dict[tuple[str, str], ProblemRecord] = {}
    for run in runs:
        for problem in run.problems:
            key = (problem.id, problem.prompt)
            if key not in found or found[key].gold is None:
                found[key] = problem
    return found


def _questions(problems: Iterable[ProblemRecord]) -> Iterator[dict[str, Any]]:
    problems = list(problems)
    share = PROMPTS // max(1, len(problems))
    prompts = [readable(problem.prompt) for problem in problems]
    fits = sum(map(_size, prompts)) <= PROMPTS
    for problem, prompt in zip(problems, prompts, strict=True):
        row: dict[str, Any] = {"id": safe(problem.id, SHOWN), "prompt": prompt if fits else _fitting(prompt, share)}
        if problem.gold is not None:
            row["gold"] = safe(problem.gold, SHOWN)
        yield row


def _fitting(text: str, size: int) -> str:
    """As much of the beginning of `text` as takes `size` bytes of the page, and no less than a line of it."""
    if _size(text) <= size:
        return text
    length = max(SHOWN, len(text) * size // _size(text))
    return f"{text[:length]}…"


def _size(value: Any) -> int:
    """Bytes that a value takes in the page."""
    return len(embedded(value).encode())


def _settings(runs: Sequence[RunRecord], defaults: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Settings in which runs differ, or which are not the default in one of them."""
    for key in dict.fromkeys(key for run in runs for key in (*defaults, *run.settings)):
        values = [run.settings.get(key) for run in runs]
        differ = any(value != values[0] for value in values)
        if differ or values[0] != defaults.get(key):
            yield {
                "key": safe(key, SHOWN),
                "values": [_setting(value) for value in values],
                "default": _setting(defaults.get(key)),
                "differ": differ,
            }


def _setting(value: Any) -> str:
    return "" if value is None else safe(value if isinstance(value, str) else json.dumps(value), SHOWN)


def _listed(runs: Sequence[RunRecord]) -> int:
    """Answers of each visit for which there is room."""
    visits = sum(len(problem.visits) for run in runs for problem in run.problems)
    fewest, most = LISTED
    return max(fewest, min(most, (VISITS // max(1, visits) - VISIT) // ANSWER))


def _chosen(runs: Sequence[RunRecord]) -> list[dict[tuple[str, int], list[Any]]]:
    """Voices that the budget has room for: for each run, by problem id and number of the visit."""
    found: list[dict[tuple[str, int], list[Any]]] = [{} for _ in runs]
    candidates = [
        (_rank(visit, number, len(problem.visits)), run, problem.id, number, visit)
        for run, record in enumerate(runs)
        for problem in record.problems
        for number, visit in enumerate(problem.visits)
    ]
    left = TEXTS
    # Stable: within a rank, runs and problems stay in their order.
    for _, run, problem_id, number, visit in sorted(candidates, key=lambda candidate: candidate[0]):
        voices = [
            [str(voice.mind), readable(voice.text), _answer(voice.answer), voice.finished] for voice in visit.voices
        ]
        left -= _size(voices)
        if left < 0:
            break
        found[run][problem_id, number] = voices
    return found


def _rank(visit: Visit, number: int, visits: int) -> int:
    """What a reader asks for first: the last visit, the first one, those at which the label changed."""
    return 0 if number == visits - 1 else 1 if number == 0 else 2 if visit.flipped else 3


def _answer(answer: str | None) -> str | None:
    return None if answer is None else safe(answer, SHOWN)


# --- one run ---


def _run(
    run: RunRecord,
    problems: Mapping[tuple[str, str], ProblemRecord],
    voices: Mapping[tuple[str, int], list[Any]],
    listed: int,
) -> dict[str, Any]:
    of_run = {(problem.id, problem.prompt): problem for problem in run.problems}
    heads, before, after = _ends(run)
    right = [{key: answer.right for key, answer in end.items() if answer.right is not None} for end in (before, after)]
    return {
        "name": safe(run.name, SHOWN),
        "model": _setting(run.settings.get("model")),
        "rollouts": number(_group_size(run)),
        "problems": len(run.problems),
        "done": len(run.metrics),
        "steps": number(run.steps),
        "finished": run.finished,
        "elected": run.settings.get("vote.labels") not in (None, "minds"),
        "heads": heads,
        "summary": list(_summary(before, after, run.seed)),
        "outcomes": outcome_table(*right) if right[0].keys() & right[1].keys() else None,
        "alarms": [
            [number(row.get("step")), safe(str(row["alarm"]), NOTICE)] for row in run.metrics if row.get("alarm")
        ],
        "notices": [safe(text, NOTICE) for text in run.notices],
        "figures": {
            curve.figure: [number(row.get(curve.figure)) for row in run.metrics]
            for curve in CURVES
            if _has(run, curve.figure)
        },
        "intervals": {
            figure: [
                [number(value) for value in steps[row["step"]]] if row["step"] in steps else None for row in run.metrics
            ]
            for figure, steps in run.intervals.items()
        },
        "rows": [_row(of_run[key], before, after, voices, listed) if key in of_run else None for key in problems],
    }


def _group_size(run: RunRecord) -> Any:
    minds, samples = (number(run.settings.get(f"population.{key}")) for key in ("minds", "samples_per_mind"))
    return None if minds is None or samples is None else minds * samples


def _has(run: RunRecord, figure: str) -> bool:
    return any(number(row.get(figure)) is not None for row in run.metrics)


def _ends(run: RunRecord) -> tuple[list[str], dict[str, Answer], dict[str, Answer]]:
    """What the run is compared by, by problem id: the surveys before and after training; where one is missing, the
    first or the last visit of each problem, if it has two."""
    before = {problem.id: problem.before for problem in run.problems if problem.before is not None}
    after = {problem.id: problem.after for problem in run.problems if problem.after is not None}
    heads = ["before training", "after training"]
    if not before:
        heads[0] = "first visit"
        before = {problem.id: _of_visit(problem.visits[0]) for problem in run.problems if problem.visits}
    if not after:
        heads[1] = "last visit"
        fewest = 2 if heads[0] == "first visit" else 1
        after = {problem.id: _of_visit(problem.visits[-1]) for problem in run.problems if len(problem.visits) >= fewest}
    return heads, before, after


def _of_visit(visit: Visit) -> Answer:
    return Answer(visit.label, visit.agreement, visit.right, visit.accuracy)


def _summary(before: Mapping[str, Answer], after: Mapping[str, Answer], seed: int) -> Iterator[dict[str, Any]]:
    """Figures before and after with their intervals over problems, and the paired difference.

    Where an end has problems that the other lacks, as the last visits of a run that goes on, those of both count.
    """
    if both := [key for key in before if key in after]:
        before, after = ({key: end[key] for key in both} for end in (before, after))
    for name, part in SUMMARY.items():
        first, last = ({key: part(answer) for key, answer in end.items()} for end in (before, after))
        values = [mean([*end.values()]) for end in (first, last)]
        if values == [None, None]:
            continue
        yield {
            "name": name,
            "values": [number(value) for value in values],
            "intervals": [_numbers(bootstrap_interval([*end.values()], seed)) for end in (first, last)],
            "change": _numbers(bootstrap_difference(first, last, seed)),
        }


def _numbers(values: Sequence[float] | None) -> list[float | int | None] | None:
    return None if values is None else [number(value) for value in values]


def _row(
    problem: ProblemRecord,
    before: Mapping[str, Answer],
    after: Mapping[str, Answer],
    voices: Mapping[tuple[str, int], list[Any]],
    listed: int,
) -> dict[str, Any]:
    """What became of one problem."""
    answers: dict[str, int] = {}

    def place(answer: str | None) -> int:
        return -1 if answer is None else answers.setdefault(safe(answer, SHOWN), len(answers))

    ends = [end.get(problem.id) for end in (before, after)]
    row: dict[str, Any] = {
        "ends": [
            None if end is None else [place(end.label), number(end.agreement), _verdict(end.right)] for end in ends
        ],
        "visits": [_visit(visit, place, listed) for visit in problem.visits],
        "texts": {
            index: voices[problem.id, index] for index in range(len(problem.visits)) if (problem.id, index) in voices
        },
    }
    if all(end is not None and end.right is not None for end in ends):
        table = outcome_table(*({problem.id: bool(end.right)} for end in ends if end is not None))
        row["outcome"] = next(name for name, count in table.items() if count)
    return {**row, "answers": list(answers)}


def _visit(visit: Visit, place: Callable[[str | None], int], listed: int) -> list[int]:
    others = sum(votes for _, votes in visit.votes[listed:])
    found = [visit.step, place(visit.label), _verdict(visit.right), int(visit.flipped), round(1000 * visit.agreement)]
    found += [visit.abstained, others]
    for answer, votes in visit.votes[:listed]:
        found += [place(answer), votes]
    return found


def _verdict(right: bool | None) -> int:
    return -1 if right is None else int(right)
