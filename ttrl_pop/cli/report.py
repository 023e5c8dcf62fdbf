"""`ttrl-pop report`: runs side by side as one HTML page that needs nothing else."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ttrl_pop.cli.inputs import flat, notices
from ttrl_pop.cli.recorded import Recorder
from ttrl_pop.config import Config
from ttrl_pop.errors import DamagedError, UsageError
from ttrl_pop.report.page.data import page_data
from ttrl_pop.report.page.html import page
from ttrl_pop.report.page.record import RunRecord
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.store.files import write_atomic
from ttrl_pop.study.cells import STUDY, cells, opened
from ttrl_pop.study.diversity import projected, texts_of

TEXTS = 500
"""Texts of a run that are drawn."""

DEFAULTS = flat(Config().model_dump(mode="json"))
"""Every setting that nobody has set, by dotted key."""


def report(paths: Sequence[Path], output: Path | None, trust: bool, quiet: bool) -> None:
    """Write the page of these runs to `output`; None is standard output.

    Raises:
        UsageError: a path is no run, a run is damaged beyond telling, or there is no place for the page.
    """
    if output is None and sys.stdout.isatty():
        raise UsageError("report writes an HTML page; pass -o report.html")
    shown = recorders([run for path in paths for run in runs_of(path)], trust)
    records = told_apart(shown)
    for record in records:
        for text in record.notices:
            notices(quiet)(f"{record.name}: {text}")
    where = places([recorder.run for recorder in shown], notices(quiet))
    text = page(page_data(records, DEFAULTS, where))
    if output is None:
        # As the page itself says, whatever the terminal's is.
        cast(Any, sys.stdout).reconfigure(encoding="utf-8")
        sys.stdout.write(text)
    elif output.exists() and not output.is_file():
        # A device or a pipe is written to, and not replaced by a file.
        output.write_text(text, encoding="utf-8")
    else:
        write_atomic(output, text.encode())


def runs_of(path: Path) -> list[Path]:
    """The runs that a path stands for: of a study's folder the first one of every arm that has begun, else itself.

    Raises:
        UsageError: a study in which nothing has begun, or a damaged one.
    """
    if not (path / STUDY).is_file():
        return [path]
    study, _ = opened(path)
    found = [cell.run.path for cell in cells(path, study) if cell.seed == 0 and cell.begun]
    if not found:
        raise UsageError(f"{path}: no run of this study has begun; go on with ttrl-pop study --resume {path}")
    return found


def places(runs: Sequence[RunDirectory], notice: Callable[[str], object]) -> list[list[list[float]]] | None:
    """Where the texts of each run are drawn; None where no run keeps them.

    Args:
        notice: is told of texts that are not as a run wrote them, which are left out.
    """
    rows: dict[str, list[Any]] = {}
    for run in runs:
        rows[str(run.path)] = []
        if run.texts.exists():
            try:
                rows[str(run.path)] = texts_of(run)
            except DamagedError as error:
                notice(f"{error}: its texts are not shown")
    return [*projected(rows, TEXTS).values()] if any(rows.values()) else None


def recorders(paths: Iterable[Path], trust: bool) -> list[Recorder]:
    """What reads the runs that these paths are or stand in, each run once.

    Raises:
        UsageError: a path is no run, or a run is damaged beyond telling.
    """
    found: dict[Path, Recorder] = {}
    for path in paths:
        recorder = Recorder(path, trust)
        found.setdefault(recorder.run.path.resolve(), recorder)
    return list(found.values())


def told_apart(recorders: Sequence[Recorder]) -> list[RunRecord]:
    """The runs as they stand now. Those whose folders have the same name are called by their paths.

    Raises:
        DamagedError: a run is damaged beyond telling.
    """
    records = [recorder.record() for recorder in recorders]
    names = Counter(record.name for record in records)
    return [
        replace(record, name=str(recorder.run.path)) if names[record.name] > 1 else record
        for recorder, record in zip(recorders, records, strict=True)
    ]
