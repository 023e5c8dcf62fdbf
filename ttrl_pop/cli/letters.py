"""`ttrl-pop letters`: the letters experiment of the Free Transformer, trained here and now."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ttrl_pop.cli import interrupts
from ttrl_pop.cli.display.console import console_on
from ttrl_pop.cli.display.letters import fraction
from ttrl_pop.cli.display.letters import regime as regime_shown
from ttrl_pop.cli.printing import print_row
from ttrl_pop.errors import UsageError
from ttrl_pop.letters.experiment import TICK, Result, experiment
from ttrl_pop.letters.regimes import REGIMES, Regime

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
                console_on(sys.stdout).print(regime_shown(event.row()))
            else:
                print_row(event.row())


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
            # Signs of life come some steps apart: the first one behind a quarter tells of it.
            if step * 4 // regime.steps > (step - TICK) * 4 // regime.steps:
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
