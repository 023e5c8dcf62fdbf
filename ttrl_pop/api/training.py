"""`ttrl_pop.train`: `ttrl-pop run` as a function."""

import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from ttrl_pop.api.run import Run
from ttrl_pop.api.settings import Files, Rows, given, rows_of_gold, source_of
from ttrl_pop.cli import inputs
from ttrl_pop.cli.display import open_display
from ttrl_pop.cli.opening import PreparedRun, Stage, create_run, prepare_resume
from ttrl_pop.cli.run import conduct
from ttrl_pop.errors import UsageError
from ttrl_pop.types import StepReport


class Training(Run):
    """A run under way: iterated, it trains, and yields the report of each step.

    Iterating may stop and go on. The first look at `answers`, `metrics` or `problems`, and the first question or
    export, go through what is left. Interrupted (Ctrl-C) or closed, it has saved the steps that are done, and
    `ttrl_pop.train(resume=run.path)` goes on.
    """

    def __init__(self, opened: Callable[[Stage], PreparedRun], quiet: bool) -> None:
        """
        Args:
            opened: opens it, telling what may take long as it begins.
        """
        with open_display(quiet, sys.stderr) as shown:
            prepared = opened(shown.phase)
        super().__init__(prepared.run.path)
        self._reports = _reports(prepared, quiet)

    def __iter__(self) -> Iterator[StepReport]:
        return self._reports

    def finish(self) -> None:
        """Train to the end."""
        for _ in self._reports:
            pass

    def close(self) -> None:
        """Stop where it is, with all steps saved that are done. Only `metrics`, `problems` and exports go on."""
        self._reports.close()
        super().close()

    @property
    def answers(self) -> list[dict[str, Any]]:
        """Final answers, as `ttrl-pop run` prints them."""
        self.finish()
        return super().answers

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl: a step each."""
        self.finish()
        return super().metrics

    @property
    def checkpoint(self) -> Path:
        """Folder of the last checkpoint."""
        self.finish()
        return super().checkpoint


def train(
    problems: Rows | None = None,
    *,
    gold: Rows | Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    preset: str | None = None,
    config: Files = None,
    quiet: bool = False,
    **settings: Any,
) -> Training:
    """Train without labels, as `ttrl-pop run` does, to the same bytes.

    >>> run = ttrl_pop.train("problems.jsonl", config="settings.toml", steps=2, out="runs/mine", quiet=True)
    >>> [(report.step, 0 <= report.metrics["vote/agreement"] <= 1) for report in run]
    [(1, True), (2, True)]
    >>> sorted(run.answers[0])[:3]
    ['abstained', 'agreement', 'answer']

    Args:
        problems: a file, `-`, `hf:NAME`, `gym:NAME`, rows with a prompt or a question each, or a
            table of pandas.
        gold: a file or rows of gold answers, or answers by problem id; for measuring.
        out: run directory; the default is the first free one of runs/NAME-NUMBER.
        resume: run directory to go on with, in place of `problems`.
        preset: settings to begin with, by name.
        config: TOML file, or several, over the preset; settings win over them.
        quiet: show nothing on stderr.
        settings: any of the configuration, by the name of a flag (`minds=16`, `lr=1e-4`), of a value (`steps=5`), or of
            a table (`vote={"grader": "exact"}`, `population={"options": {"sigma": 0.005}}`). Those of the table
            `problems` by their flags: `raw`, `prompt_key`, `prompt_template`.

    Raises:
        UsageError: whatever of it is wrong; nothing has been written.
    """
    typed = given(settings, preset, config)
    if resume is not None:
        if out is not None:
            raise UsageError(f"resume goes on in the run's own directory; leave out={str(out)!r} out")
        source = None if problems is None else source_of(problems)
        if not isinstance(source, str | None):
            raise UsageError("resume takes its problems from the run directory; leave the rows out")
        known = None if gold is None else "gold"
        return Training(lambda stage: prepare_resume(Path(resume), source, known, typed, stage), quiet)
    checked = inputs.for_run(
        None if problems is None else source_of(problems),
        None if gold is None else rows_of_gold(gold),
        None if out is None else Path(out),
        typed,
        inputs.notices(quiet),
    )
    return Training(lambda stage: create_run(checked, stage), quiet)


def _reports(prepared: PreparedRun, quiet: bool) -> Generator[StepReport, None, None]:
    """What happens in a run, shown as the command shows it from the first report that is asked for."""
    with open_display(quiet, sys.stderr) as shown:
        yield from conduct(prepared, shown, quiet, "ttrl_pop.train")
