"""`ttrl-pop eval`: measure the base model, a run, or both and the difference."""

import sys
from typing import Any

from ttrl_pop.cli import interrupts
from ttrl_pop.cli.display import open_display
from ttrl_pop.cli.display.base import Display
from ttrl_pop.cli.display.tables import measures_table
from ttrl_pop.cli.inputs import ReadingInputs
from ttrl_pop.cli.opening import opened_for_reading
from ttrl_pop.cli.printing import print_rows
from ttrl_pop.fit.prepare import prepare
from ttrl_pop.report.estimators import bootstrap_difference
from ttrl_pop.report.gold import label_correct, outcome_table
from ttrl_pop.report.measures import Measures
from ttrl_pop.report.minds import information
from ttrl_pop.run.lessons import CutOff
from ttrl_pop.run.session import Session
from ttrl_pop.run.survey import summarise, survey
from ttrl_pop.sample.backend import Weights
from ttrl_pop.store import checkpoint
from ttrl_pop.types import Load


def evaluate(given: ReadingInputs, compare: bool, quiet: bool) -> None:
    """Measure the run, else the base model, and print a row; `compare` measures both and adds their difference.

    Raises:
        UsageError: the model or the run does not go with the inputs.
    """
    rows: list[dict[str, Any]] = []
    measured: dict[str, Measures] = {}
    noise = given.noise
    with open_display(quiet, sys.stderr) as display, opened_for_reading(given, display.phase) as opened:
        session, folder = opened.session, opened.checkpoint
        systems = (folder is not None) + (folder is None or compare)
        load = Load(survey=systems * len(session.problems) * session.config.group_size)
        display.begin(f"eval {given.source}", 0, 0, load, session.backend.meter)
        for text in (*session.notices, *opened.notices):
            display.notice(text)
        if folder is None or compare:
            measured["base"], minds = _measure(session, display, "base", noise, weights="base")
            rows.append(_measures_row("base", 0, session, measured["base"], noise) | minds)
        if folder is not None:
            checkpoint.load_policy(folder, session.policy)
            measured["run"], minds = _measure(session, display, "run", noise)
            step = checkpoint.load_state(folder)["step"]
            rows.append(_measures_row("run", step, session, measured["run"], noise) | minds)
    if compare:
        rows.append(_difference_row(session, measured["base"], measured["run"]))
    print_rows(rows, measures_table)


def _measure(
    session: Session, display: Display, name: str, noise: bool, weights: Weights = "policy"
) -> tuple[Measures, dict[str, Any]]:
    """Figures of one pass, and where minds have several rollouts how much of the answer the mind tells."""
    prepare(session, display.notice, display.phase)
    display.phase(f"{name}: sampling", len(session.problems) * session.config.group_size, "survey")
    tallies, cut_off = [], CutOff(session.config.sampling.max_new_tokens)
    for tally in survey(session, noise, weights):
        interrupts.check()
        display.tally(tally, label_correct(tally, session.gold, session.grader.same))
        tallies.append(tally)
        cut_off.see(tally)
    if told := cut_off.notice():
        display.warning(f"{name}: {told}")
    config, minds = session.config, {}
    if noise and config.population.samples_per_mind > 1:
        found = information(tallies, config.seed)
        minds = {"information": found.bits, "information_null": found.null, "information_p": found.p}
    return summarise(session, tallies), minds


def _measures_row(name: str, step: int, session: Session, measures: Measures, noise: bool) -> dict[str, Any]:
    config = session.config
    return {
        "system": name,
        "model": config.model,
        "step": step,
        "population": config.population.name if noise else "none",
        "problems": len(session.problems),
        "rollouts": config.group_size,
        **measures.values,
        "intervals": {key: list(pair) for key, pair in measures.intervals.items() if pair is not None},
    }


def _difference_row(session: Session, base: Measures, trained: Measures) -> dict[str, Any]:
    """Run minus base, paired over problems, with 95 % intervals."""
    values: dict[str, float | None] = {}
    intervals: dict[str, list[float]] = {}
    ids = list(base.per_problem)
    for key in base.values:
        before, after = ({i: m.per_problem[i].get(key) for i in ids} for m in (base, trained))
        difference = bootstrap_difference(before, after, session.config.seed)
        values[key] = None if difference is None else difference[0]
        if difference is not None:
            intervals[key] = [difference[1], difference[2]]
    row: dict[str, Any] = {"system": "run - base", **values, "intervals": intervals}
    if session.gold:
        row["labels"] = outcome_table(_right(base), _right(trained))
    return row


def _right(measures: Measures) -> dict[str, bool]:
    """Whether the label is right, for each problem with a gold answer."""
    figures = {problem: row["label_accuracy"] for problem, row in measures.per_problem.items()}
    return {problem: bool(figure) for problem, figure in figures.items() if figure is not None}
