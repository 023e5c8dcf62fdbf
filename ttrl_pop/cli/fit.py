"""`ttrl-pop fit`: codes of latent minds, fitted once and kept for other runs."""

import sys
from dataclasses import asdict, replace
from pathlib import Path

from ttrl_pop.cli import inputs
from ttrl_pop.cli.display import open_display
from ttrl_pop.cli.inputs import ReadingInputs
from ttrl_pop.cli.opening import opened_for_reading
from ttrl_pop.cli.printing import print_row
from ttrl_pop.errors import UsageError
from ttrl_pop.fit.kept import keep
from ttrl_pop.fit.prepare import fit_codes, shortfall, told
from ttrl_pop.population.latent import Latent
from ttrl_pop.types import Load


def fit(given: ReadingInputs, out: Path, quiet: bool) -> None:
    """Fit latent minds to the model on these problems, keep the fit in `out`, and print its figures.

    Raises:
        UsageError: the model or the problems do not go with it, or `out` is not free.
    """
    inputs.check_writable(out, f"--out {out}")
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"--out {out}: exists and is not empty; pass another --out")
    population = given.config.population.model_copy(update={"name": "latent"})
    given = replace(given, config=given.config.model_copy(update={"population": population}))
    with open_display(quiet, sys.stderr) as display, opened_for_reading(given, display.phase) as opened:
        session = opened.session
        display.begin(f"fit {given.source}", 0, 0, Load(), session.backend.meter)
        for text in (*session.notices, *opened.notices):
            display.notice(text)
        fitted = session.policy.population
        assert isinstance(fitted, Latent)
        figures = fit_codes(session, fitted, display.phase)
        keep(out, fitted, session.policy.model.fingerprint, figures)
        display.notice(told(figures, fitted.options.bits))
        if fault := shortfall(figures, fitted.options.least_gap):
            display.warning(f"runs refuse this fit: {fault}")
    print_row({"fitted": str(out), **asdict(figures)})
