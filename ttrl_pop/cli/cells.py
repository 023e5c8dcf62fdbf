"""The runs of a study, one after the other, by what `ttrl-pop run` uses; and its rows in the end."""

import datetime
import gc
import shlex
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from ttrl_pop.cli.display import open_display
from ttrl_pop.cli.display.base import Display
from ttrl_pop.cli.display.console import console_on
from ttrl_pop.cli.display.marks import duration
from ttrl_pop.cli.display.study import study_table
from ttrl_pop.cli.given import Given
from ttrl_pop.cli.inputs import RunInputs
from ttrl_pop.cli.opening import PreparedRun, create_run, prepare_resume
from ttrl_pop.cli.printing import print_rows
from ttrl_pop.cli.run import conduct
from ttrl_pop.cli.studies import StudyInputs
from ttrl_pop.cli.trust import check_trusted, remember
from ttrl_pop.config import Config
from ttrl_pop.errors import DamagedError, UsageError
from ttrl_pop.run.workload import workload
from ttrl_pop.store.directory import RunDirectory, clear_unfinished
from ttrl_pop.study.cells import STUDY, Cell, begin, cells, opened, with_tokens_of
from ttrl_pop.study.design import Study
from ttrl_pop.study.diversity import equal_coherence, texts_of, with_texts
from ttrl_pop.study.figures import Figures, figures_of
from ttrl_pop.study.rows import study_rows
from ttrl_pop.study.texts import embedder, text_rows
from ttrl_pop.types import ProblemSet
from ttrl_pop.vote.rules import build_grader

LEARNING = 1
"""What learning from a rollout takes, in units of writing one, about."""


def run(given: StudyInputs, quiet: bool) -> None:
    """Begin a study and do all of it.

    Raises:
        UsageError: as a run has it, or the folder cannot be made.
    """
    if given.study.curves:
        # What is missing is said before anything is written.
        embedder()
    folder = begin(given.out, given.study, given.problems, datetime.date.today())
    for config in given.study.arms.values():
        remember(RunDirectory(folder), config)
    go_on(folder, Given(), quiet)


def go_on(folder: Path, given: Given, quiet: bool) -> None:
    """Do what is left of a study, and print its rows.

    Args:
        given: says whether code and addresses that the study's own file names may be used, if it was not begun here.

    Raises:
        UsageError: it is none, names what is not trusted, another process is at work in it, or as a run has it.
    """
    study, problems = opened(folder)
    for config in study.arms.values():
        check_trusted(RunDirectory(folder), config, given, file=folder / STUDY)
    with RunDirectory(folder).lock():
        try:
            results = _all_done(folder, study, problems, given, quiet)
        except KeyboardInterrupt:
            if not quiet:
                print(f"the study goes on with: ttrl-pop study --resume {shlex.quote(str(folder))}", file=sys.stderr)
            raise
    rows = [*study_rows(study.name, results)]
    if study.curves:
        rows += equal_coherence(study.name, study.curves, results)
    print_rows(rows, study_table)
    if not (quiet or sys.stdout.isatty()):
        console_on(sys.stderr).print(study_table(rows))


def _all_done(folder: Path, study: Study, problems: ProblemSet, given: Given, quiet: bool) -> dict[str, list[Figures]]:
    """The figures of every run, by arm and in the order of the seeds; runs that are not done are."""
    results: dict[str, list[Figures]] = {arm: [] for arm in study.arms}
    planned = list(cells(folder, study))
    progress = _Progress(study, planned, len(problems.problems))
    graders = {arm: build_grader(config.vote) for arm, config in study.arms.items()}
    for number, cell in enumerate(planned):
        if not cell.done:
            if (other := study.equal_tokens.get(cell.arm)) is not None:
                cell = with_tokens_of(cell, results[other][cell.seed], len(problems.problems))
            with open_display(quiet, sys.stderr) as shown:
                shown.notice(progress.told(number))
                _conduct(_prepared(cell, study, problems, given, shown), shown, quiet, bool(study.curves))
            progress.did(number)
        try:
            found = figures_of(cell.run, problems.answers, graders[cell.arm].same)
        except DamagedError as error:
            # Before and after are of one run: what is lost of it cannot be made by itself.
            raise UsageError(f"{error}; or move {cell.run.path} away, and --resume makes that run anew") from error
        results[cell.arm].append(with_texts(found, texts_of(cell.run)) if study.curves else found)
    return results


def _conduct(prepared: PreparedRun, shown: Display, quiet: bool, texts: bool) -> None:
    """Do one run, or what is left of it."""
    with closing(conduct(prepared, shown, quiet, "ttrl-pop study", text_rows if texts else None)) as reports:
        deque(reports, maxlen=0)


def _prepared(cell: Cell, study: Study, problems: ProblemSet, given: Given, shown: Display) -> PreparedRun:
    # The model before is held by its own hooks: this one should not have to stand beside it.
    gc.collect()
    path = cell.run.path
    if not (real := path.resolve()).is_relative_to(path.parent.resolve()):
        # What is written there would be of a run that is somebody's else.
        raise UsageError(f"{path}: must be a folder in the study, leads to {real}; put the folder itself there")
    if cell.begun:
        return prepare_resume(path, None, None, given, shown.phase)
    # What is there of a run that was killed before it existed.
    clear_unfinished(path)
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(
            f"{path}: a run of the study without identity.json, which cannot go on; put that file back, or move the "
            "folder away and the run begins anew"
        )
    return create_run(RunInputs(cell.config, problems, study.name, path), shown.phase)


class _Progress:
    """How far a study is: runs that are done, and the time that those to come take at the pace of the others."""

    def __init__(self, study: Study, planned: Sequence[Cell], problems: int) -> None:
        self._study = study
        self._planned = planned
        sizes = {arm: _size(config, problems) for arm, config in study.arms.items()}
        for arm, other in study.equal_tokens.items():
            sizes[arm] = _rollouts(study.arms[other], problems)
        self._left = [0 if cell.done else sizes[cell.arm] for cell in planned]
        self._began = time.monotonic()
        self._worked = 0

    def told(self, number: int) -> str:
        """What is said as a run begins."""
        cell, left = self._planned[number], ""
        if self._worked:
            seconds = (time.monotonic() - self._began) / self._worked * sum(self._left)
            left = f"; about {duration(seconds)} left"
        return f"{self._study.name}: run {number + 1} of {len(self._planned)}, {cell.arm} {cell.seed}{left}"

    def did(self, number: int) -> None:
        """A run has ended."""
        self._worked += self._left[number]
        self._left[number] = 0


def _size(config: Config, problems: int) -> int:
    """Work of a run, in rollouts that are written."""
    load = workload(config, problems, 0, 0, 1 + config.baseline)
    return load.survey + (1 + LEARNING) * load.sample


def _rollouts(config: Config, problems: int) -> int:
    """Rollouts of the steps and of the final answers."""
    load = workload(config, problems, 0, 0, 1)
    return load.survey + load.sample
