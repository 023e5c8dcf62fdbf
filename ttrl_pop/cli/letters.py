"""`ttrl-pop letters`: the letters experiment of the Free Transformer, trained here and now."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ttrl_pop.cli import interrupts
from ttrl_pop.cli.display.console import console_on
from ttrl_pop.cli.printing import print_row
from ttrl_pop.errors import UsageError
from ttrl_pop.letters.experiment import Result, experiment
from ttrl_pop.letters.regimes import REGIMES, Regime
from ttrl_pop.text import safe

Tick = Callable[[Regime, int, int], None]
"""(regime, seed, step): how far a regime is."""


def letters(kappas: Sequence[float], first_seed: int, seeds: int, steps: int | None, quiet: bool) -> None:
    """Train the regimes of these free bits, all where none are named, and print a row for each as soon as it is there.

    Args:
        steps: of each regime, in place of its own.

    Raises:
        UsageError: no regime has that number of free bits, or a number is out of range.
    """
    wanted = [regime.after(steps) if steps else regime for regime in _named(kappas)]
    is_table = sys.stdout.isatty()
    with _progress(quiet) as tick:
        for event in experiment(wanted, range(first_seed, first_seed + seeds)):
            interrupts.check()
            if not isinstance(event, Result):
                tick(event.regime, event.seed, event.step)
            elif is_table:
                console_on(sys.stdout).print(_table(event))
            else:
                print_row(event.row())


def fraction(kappa: float) -> str:
    """`1/64` for 0.015625, `8` for 8."""
    return f"1/{1 / kappa:g}" if kappa < 1 else f"{kappa:g}"


def _named(kappas: Sequence[float]) -> Sequence[Regime]:
    by_kappa = {regime.kappa: regime for regime in REGIMES}
    for kappa in kappas:
        if kappa not in by_kappa:
            known = ", ".join(f"{known:g}" for known in by_kappa)
            raise UsageError(f"--kappa must be one of {known} (bits a token), got {kappa:g}")
    return [by_kappa[kappa] for kappa in kappas] or REGIMES


@contextmanager
def _progress(quiet: bool) -> Iterator[Tick]:
    """How far each regime is, on stderr: bars on a terminal, else a line at each quarter."""
    if quiet:
        yield lambda regime, seed, step: None
        return
    if not sys.stderr.isatty():

        def line(regime: Regime, seed: int, step: int) -> None:
            if step % (regime.steps // 4 or 1) == 0 or step == regime.steps:
                name = f"kappa {fraction(regime.kappa)}  seed {seed}"
                print(f"{name}  step {step} of {regime.steps}", file=sys.stderr, flush=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    bars: dict[tuple[float, int], TaskID] = {}
    with Progress(*columns, TimeRemainingColumn(), console=console_on(sys.stderr), transient=True) as progress:

        def bar(regime: Regime, seed: int, step: int) -> None:
            key = regime.kappa, seed
            if key not in bars:
                name = f"κ {fraction(regime.kappa)}  seed {seed}"
                bars[key] = progress.add_task(name, total=regime.steps)
            progress.update(bars[key], completed=step)

        yield bar


def _table(result: Result) -> Table:
    """Texts as in the paper's figure 4, texts of one code beside texts of fresh ones, under a line of figures."""
    (at, found), *_ = result.agreements.items()
    costs = result.costs
    head = Text.assemble(
        (f"κ = {fraction(result.regime.kappa)} bits a token", "bold"),
        f"   seed {result.seed}   "
        + (f"gap {costs.gap_bits:.1f} bits a text" if not costs.is_dead else "dead: the code is not used")
        + f"   at temperature {at:g}: well-formed {found.well_formed:.2f}, same place {found.near_same:.2f} of one code"
        f" and {found.near_other:.2f} of others, same noise {found.correlation_same:.2f} and"
        f" {found.correlation_other:.2f}",
    )
    table = Table(title=head, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("one code", no_wrap=True)
    table.add_column("a fresh code each", no_wrap=True)
    for same, fresh in zip(result.same, result.fresh, strict=True):
        table.add_row(Text(safe(same, 66), style="blue"), Text(safe(fresh, 66), style="green"))
    return table
