"""`ttrl-pop problems`: what a run knows of each problem."""

from pathlib import Path
from typing import Any

from ttrl_pop.cli.display.tables import states_table
from ttrl_pop.cli.printing import print_rows
from ttrl_pop.config_file import load_config
from ttrl_pop.report.gold import is_right
from ttrl_pop.run.history import group_weight
from ttrl_pop.run.progress import load_history
from ttrl_pop.store import checkpoint, files
from ttrl_pop.store.directory import find
from ttrl_pop.types import GoldAnswer
from ttrl_pop.vote.rules import build_grader


def problems(path: Path) -> None:
    """Print what a run knows of each problem that it has visited, in the order of first visits.

    Raises:
        UsageError: `path` is neither a run with a checkpoint nor a checkpoint.
    """
    run_dir, folder = find(path)
    history = load_history(folder or checkpoint.newest(run_dir))
    config = load_config(run_dir.config, {})
    same = build_grader(config.vote).same
    kept = files.read_lines(run_dir.gold) if run_dir.gold.exists() else ()
    gold = {row["id"]: GoldAnswer(row["answer"], row.get("others", ())) for row in kept}
    rows: list[dict[str, Any]] = []
    for state, row in zip(history.values(), history.rows(), strict=True):
        row |= {"flip_rate": state.flip_rate, "weight": group_weight(state, config.guard)}
        if state.id in gold:
            row |= {"gold": gold[state.id], "correct": is_right(state.label, gold[state.id], same)}
        rows.append(row)
    print_rows(rows, states_table)
