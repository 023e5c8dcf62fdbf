"""Print a picture (SVG) of the live view, as it stood while a recorded run sampled for its last step.

python dev/picture.py RUN > docs/live-view.svg

Everything in it is of the run's own files: curves and times of metrics.jsonl, votes of rollouts/.
"""

import io
import re
import sys
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from rich.console import Console

from ttrl_pop.cli.display.live import Live
from ttrl_pop.cli.recorded import Recorder
from ttrl_pop.report.page.record import RunRecord, Visit
from ttrl_pop.report.rows import from_metrics_row
from ttrl_pop.types import Cluster, Group, Problem, Tally

COLUMNS, ROWS = 88, 32


def picture(record: RunRecord) -> str:
    """The live view of a run's last step, once most of its problems have been voted on."""
    console = Console(width=COLUMNS, height=ROWS, file=io.StringIO(), force_terminal=True, record=True)
    now = 0.0
    view = Live(console, clock=lambda: now)
    *done, last = record.metrics
    view.begin(record.name, record.steps, 0)
    for row in done:
        now += _seconds(row, "time/step")
        view.step(from_metrics_row(row))
    visits = [
        (problem.id, visit) for problem in record.problems for visit in problem.visits if visit.step == last["step"]
    ]
    view.phase(f"step {last['step']}: sampling", len(visits))
    now += _seconds(last, "time/sample")
    for problem, visit in visits[: len(visits) * 3 // 4]:
        view.tally(_tally(problem, visit), visit.right)
    console.print(view)
    return svg(console, "ttrl-pop run")


def svg(console: Console, title: str) -> str:
    """What a recording console has printed, in a window of this title."""
    made = console.export_svg(title=title)
    # A font from elsewhere would be asked for by whoever opens the picture; theirs will do.
    return re.sub(r"\s*@font-face \{.*?\}", "", made, flags=re.DOTALL)


def _tally(problem: str, visit: Visit) -> Tally:
    """The vote, as the view is shown it. Of the rollouts it keeps nothing."""
    total = visit.abstained + sum(count for _, count in visit.votes)
    clusters = tuple(Cluster(answer, (), Fraction(count, total)) for answer, count in visit.votes)
    return Tally(Group(Problem(problem, "", 0), ()), (), clusters, visit.label, 0 if clusters else None, ())


def _seconds(row: Mapping[str, Any], key: str) -> float:
    return float(row.get(key) or 0.0)


if __name__ == "__main__":
    print(picture(Recorder(Path(sys.argv[1])).record()))
