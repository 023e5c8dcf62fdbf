"""`--plan`: what a command would do, printed; nothing is written, and no weight is read."""

import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ttrl_pop.cli.display.console import console_on
from ttrl_pop.cli.display.marks import duration
from ttrl_pop.cli.inputs import ReadingInputs, RunInputs
from ttrl_pop.cli.printing import print_row, print_rows
from ttrl_pop.config import Config
from ttrl_pop.config_file import dump_config
from ttrl_pop.run.workload import workload
from ttrl_pop.study.cells import with_rollouts
from ttrl_pop.study.design import Study
from ttrl_pop.text import safe
from ttrl_pop.types import ProblemSet

if TYPE_CHECKING:
    from ttrl_pop.plan.forecast import Forecast

LONGEST = 4096
"""Characters of a notice."""

FIGURES = ("problems", "votes", "rollouts", "share", "prompt\ntokens", "new\ntokens", "time")
"""Heads of the figures of a part."""

NAME = 12
"""Columns of a part's name, below which figures are put under each other."""


def plan_run(given: RunInputs, as_json: bool, quiet: bool) -> None:
    """Say what `run` would do.

    Raises:
        UsageError: it would refuse this.
    """
    from ttrl_pop.cli.opening import check_tracked

    check_tracked(given.config)
    held = len(given.held.problems) if given.held else 0
    _print(_forecasts().forecast_training(given.config, given.problems, held, starts=True), as_json, quiet)


def plan_study(study: Study, problems: ProblemSet, as_json: bool, quiet: bool) -> None:
    """Say what `study` would do: a row for each arm, over all its seeds; the memory is that of its largest run.

    Raises:
        UsageError: it would refuse this.
    """
    forecasts = _forecasts()
    found: dict[str, "Forecast"] = {}
    alike: dict[str, "Forecast"] = {}
    for arm, config in study.arms.items():
        config = _with_rollouts_of(config, study.arms.get(study.equal_tokens.get(arm, "")), len(problems.problems))
        # Whatever is paid for, the work is the same: measured once, it does not differ by what else the machine did.
        work = dump_config(config.model_copy(update={"vote": config.vote.model_copy(update={"reward": "majority"})}))
        if work not in alike:
            alike[work] = forecasts.forecast_training(config, problems)
        found[arm] = alike[work]
    rows = [_over_seeds(arm, forecast, study) for arm, forecast in found.items()]
    rollouts = sum(row["rollouts"] for row in rows)
    _print(
        forecasts.Forecast(
            work=tuple({**row, "share": row["rollouts"] / rollouts} for row in rows),
            memory=max((forecast.memory for forecast in found.values()), key=lambda memory: sum(memory.values())),
            disk={arm: study.seeds * sum(forecast.disk.values()) for arm, forecast in found.items()},
            notices=tuple(dict.fromkeys(notice for forecast in found.values() for notice in forecast.notices)),
        ),
        as_json,
        quiet,
    )


def _over_seeds(arm: str, forecast: "Forecast", study: Study) -> dict[str, Any]:
    """The work of an arm, as a part of the study's."""
    *_, whole = (row for row in forecast.rows() if row["kind"] == "work")
    sums = {key: study.seeds * whole[key] for key in ("rollouts", "prompt_tokens", "new_tokens")}
    seconds = None if whole["seconds"] is None else round(study.seeds * whole["seconds"], 1)
    last = forecast.work[-1]
    return {"part": arm, "problems": last["problems"], "votes": last["votes"], **sums, "seconds": seconds}


def _with_rollouts_of(config: Config, other: Config | None, problems: int) -> Config:
    """An arm that gets the tokens of another, with as many rollouts, which is as much as is known before."""
    if other is None:
        return config
    load = workload(other, problems, 0, 0, 1)
    return with_rollouts(config, (load.survey + load.sample) / problems)


def plan_eval(given: ReadingInputs, compare: bool, as_json: bool, quiet: bool) -> None:
    """Say what `eval` would do."""
    systems = [*(["base"] if given.run is None or compare else []), *(["run"] if given.run is not None else [])]
    _print_survey(given, systems, as_json, quiet)


def plan_sample(given: ReadingInputs, as_json: bool, quiet: bool) -> None:
    """Say what `sample` would do."""
    _print_survey(given, ["rollouts"], as_json, quiet)


def _print_survey(given: ReadingInputs, parts: Sequence[str], as_json: bool, quiet: bool) -> None:
    adapter = given.run is not None
    found = _forecasts().forecast_survey(
        given.config, given.problems, parts, adapter, given.noise, given.rewards, starts=True
    )
    _print(found, as_json, quiet)


def _forecasts() -> ModuleType:
    """What looks, loaded when it is asked for."""
    with _growing():
        from ttrl_pop.plan import forecast
    return forecast


@contextmanager
def _growing() -> Iterator[None]:
    """While libraries are loaded: what they make stays, and is not looked through for garbage, then or later, which
    would take a fifth of a look."""
    if "torch" in sys.modules:
        # What is here then is a program's that has done other things, and some of it may be garbage.
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _print(found: "Forecast", as_json: bool, quiet: bool) -> None:
    rows = list(found.rows())
    if as_json:
        for row in rows:
            print_row(row)
    else:
        print_rows(rows, plan_table)
    if not quiet:
        console = console_on(sys.stderr)
        for notice in (*found.notices, "tokens and seconds are those of completions as long as the limit allows"):
            console.print(Text(safe(notice, LONGEST)), soft_wrap=True)


def plan_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The work as one table, memory and disk as another.

    Args:
        rows: as `Forecast.rows` has them.
    """
    work = [(_name(row), _figures(row)) for row in rows if row["kind"] == "work"]
    sizes = _table("", "")
    for row in rows:
        if row["kind"] != "work":
            label = Text(f"{row['kind']}: ", style="dim").append_text(_name(row))
            sizes.add_row(label, _size(row["bytes"]))
    return Group(_Work(work), Text(""), sizes)


class _Work:
    """Parts and their figures: beside each other where they fit whole, else below each other."""

    def __init__(self, parts: Sequence[tuple[Text, Sequence[str]]]) -> None:
        self._parts = parts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        columns = [*zip(FIGURES, *(figures for _, figures in self._parts), strict=True)]
        width = sum(2 + max(cell_len(line) for cell in column for line in cell.split("\n")) for column in columns)
        if NAME + width <= options.max_width:
            table = _table("", *FIGURES)
            for name, figures in self._parts:
                table.add_row(name, *figures)
            yield table
            return
        table = _table("", "")
        for name, figures in self._parts:
            table.add_row(name, figures[-1])
            for head, figure in zip(FIGURES[:-1], figures[:-1], strict=True):
                if figure:
                    table.add_row(Text(f"  {' '.join(head.split())}", style="dim"), figure)
        yield table


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_header=any(heads))
    for number, head in enumerate(heads):
        # A name may take several lines, a figure is whole.
        table.add_column(head, justify="right" if number else "left", no_wrap=number > 0, overflow="fold")
    return table


def _name(row: Mapping[str, Any]) -> Text:
    return Text(row["part"], style="bold" if row["part"] in ("all", "peak") else "")


def _figures(row: Mapping[str, Any]) -> list[str]:
    """What stands below each of `FIGURES`."""
    counts = (_count(row.get(key)) for key in ("problems", "votes", "rollouts"))
    tokens = (_count(row[key]) for key in ("prompt_tokens", "new_tokens"))
    return [*counts, f"{row['share']:.0%}", *tokens, "?" if row["seconds"] is None else duration(row["seconds"])]


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}".replace(",", " ")


def _size(count: int) -> str:
    unit, size = next((unit, size) for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 0)) if count >= size)
    return f"{count / (size or 2**10):.1f} {unit}"
