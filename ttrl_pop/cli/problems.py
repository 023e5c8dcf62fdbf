"""`ttrl-pop problems`: what a run knows of each problem."""

import sys
from pathlib import Path
from typing import Any

from rich.text import Text

from ttrl_pop.cli.display.console import console_on
from ttrl_pop.cli.display.tables import states_table
from ttrl_pop.cli.given import Given
from ttrl_pop.cli.printing import print_rows
from ttrl_pop.cli.trust import NAMING, check_trusted
from ttrl_pop.config import Config
from ttrl_pop.config_file import load_config
from ttrl_pop.report.gold import is_right
from ttrl_pop.run.guard import flip_scale
from ttrl_pop.run.progress import load_history
from ttrl_pop.store import checkpoint, files, identity
from ttrl_pop.store.directory import RunDirectory, find
from ttrl_pop.store.identity import CONFIG, GOLD
from ttrl_pop.text import safe
from ttrl_pop.types import GoldAnswer
from ttrl_pop.vote.rules import build_grader

LONGEST = 4096
"""Characters of a notice."""


def problems(path: Path, trust: bool) -> None:
    """Print what a run knows of each problem that it has visited, in the order of first visits.

    Raises:
        UsageError: `path` is neither a run with a checkpoint nor a checkpoint, or the run is damaged.
    """
    run_dir, folder = find(path)
    known = identity.load(run_dir)
    config = load_config(run_dir.config, {}, identity.read(run_dir, known, CONFIG))
    check_trusted(run_dir, config, Given(trust=trust), unused=NAMING - {"vote.grader"})
    if folder is None:
        folder = checkpoint.newest(run_dir, _print_notice)
    else:
        checkpoint.load_state(folder)
    print_rows(state_rows(run_dir, folder, config), states_table)


def state_rows(run: RunDirectory, folder: Path, config: Config) -> list[dict[str, Any]]:
    """What the checkpoint in `folder` knows of each problem that was visited, in the order of first visits."""
    history = load_history(folder)
    same = build_grader(config.vote).same
    gold = _gold(run, identity.load(run))
    rows: list[dict[str, Any]] = []
    for state, row in zip(history.values(), history.rows(), strict=True):
        # As JSON has it, for those who ask from Python.
        row["window"] = [*state.window]
        row |= {"flip_rate": state.flip_rate, "weight": flip_scale(state) if config.guard.flip_scaling else 1.0}
        if state.id in gold:
            row |= {"gold": gold[state.id], "correct": is_right(state.label, gold[state.id], same)}
        rows.append(row)
    return rows


def _gold(run: RunDirectory, known: identity.Identity) -> dict[str, GoldAnswer]:
    """Gold answers of a run by problem id, as it wrote them."""
    if GOLD not in known.files:
        return {}
    identity.check(run, known, GOLD)
    return {row["id"]: GoldAnswer(row["answer"], row.get("others", ())) for row in files.read_lines(run.gold)}


def _print_notice(text: str) -> None:
    console_on(sys.stderr).print(Text(safe(text, LONGEST)), soft_wrap=True)
