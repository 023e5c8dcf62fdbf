"""Print, a JSON line for each arm, whether `best` would be better chosen by highest agreement, from runs with gold.

python -m dev.studies.best FOLDER...

A FOLDER is that of a study, with a run directory for each cell. Of every run, two checkpoints are compared: the
soundest (`ttrl_pop.run.verdict.soundness`), which `best` points to, and the one of highest agreement. Soundness,
agreement and the shares of right rollouts and labels are all of the rollouts of the step after a checkpoint.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ttrl_pop.report.estimators import student_quantile
from ttrl_pop.run.verdict import soundness

Row = Mapping[str, Any]

FIGURES = {"accuracy": "rollout/accuracy", "label_accuracy": "vote/label_accuracy"}


def chosen(rows: Sequence[Row]) -> tuple[Row, Row]:
    """Of the rows of a run's metrics those that measured its soundest checkpoint and the one of highest agreement; of
    several as good the first."""
    # The first row measures the base model, which is no checkpoint.
    candidates = [row for row in rows[1:] if not row.get("alarm")]
    return max(candidates, key=soundness), max(candidates, key=lambda row: row["vote/agreement"])


def compared(runs: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """Means over runs of what the soundest checkpoint has, less what the one of highest agreement has, with 95 %
    intervals for other runs of this kind."""
    pairs = [chosen(rows) for rows in runs]
    found: dict[str, Any] = {"runs": len(runs), "other_step": sum(one["step"] != other["step"] for one, other in pairs)}
    for name, key in FIGURES.items():
        differences = [one[key] - other[key] for one, other in pairs]
        half = student_quantile(0.95, len(runs) - 1) * stdev(differences) / math.sqrt(len(runs))
        middle = fmean(differences)
        found[name] = {
            "soundest": fmean(one[key] for one, _ in pairs),
            "most_agreed": fmean(other[key] for _, other in pairs),
            "first": fmean(rows[0][key] for rows in runs),
            "highest": fmean(max(row[key] for row in rows[1:]) for rows in runs),
            "difference": middle,
            "interval": [middle - half, middle + half],
        }
    return found


def by_arm(folder: Path) -> dict[str, list[list[Row]]]:
    """Rows of metrics of each run that has trained, by arm."""
    arms: dict[str, list[list[Row]]] = {}
    for path in sorted(folder.glob("*/metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        arms.setdefault(path.parent.name.rpartition("-")[0], []).append(rows)
    return arms


def lines(folders: Sequence[str]) -> Iterator[str]:
    """A line for each arm with two runs or more, and one for all of a folder."""
    for folder in map(Path, folders):
        arms = by_arm(folder)
        everything = {"all": [rows for runs in arms.values() for rows in runs]} if len(arms) > 1 else {}
        for arm, runs in {**arms, **everything}.items():
            if len(runs) > 1:
                yield json.dumps({"study": folder.name, "arm": arm, **compared(runs)})


if __name__ == "__main__":
    for line in lines(sys.argv[1:]):
        print(line)
