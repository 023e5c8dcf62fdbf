"""Phase d: where the time of a step goes, on one model: kernels and operators by time, of decode steps and of the
learner; tables are written beside the rows.

    python -m dev.gpu.profile FOLDER --name smollm2 --logs DIR
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks import ours
from dev.gpu.rows import say
from ttrl_pop.learn.learner import Learner
from ttrl_pop.run.session import Session

ROWS = 40


def profiled(work: Callable[[], Any], device: str, file: Path) -> dict[str, float]:
    """Run `work` twice, the second time watched; its tables go to `file`. Seconds of the device's kernels and of the
    whole."""
    work()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device != "cpu" else [])
    began = ours.now()
    with profile(activities=activities) as seen:
        work()
        ended = ours.now()
    averages = seen.key_averages()
    order = ("self_device_time_total", "self_cpu_time_total") if device != "cpu" else ("self_cpu_time_total",)
    file.write_text("\n\n".join(averages.table(sort_by=key, row_limit=ROWS, max_name_column_width=80) for key in order))
    busy = sum(event.self_device_time_total for event in averages) / 1e6
    kernels = sum(event.count for event in averages if event.self_device_time_total > 0)
    return {"seconds": ended - began, "busy": busy, "kernels": kernels}


def learner_of(session: Session) -> Callable[[], Any]:
    """An update from made-up rollouts, the same each time."""
    learner = Learner(session.policy, session.config)
    tallies = [session.tally(group) for group in ours.made_groups(session, 1)]

    def work() -> None:
        session.policy.version = 0
        learner.learn(tallies, 1)

    return work


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dev.gpu.profile", description="Profile a step of ours.")
    parser.add_argument("folder")
    parser.add_argument("--name", required=True)
    parser.add_argument("--logs", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    graphs = given.device != "cpu"
    flags = {"new-tokens": 2 if given.quick else 32, "problems": 2 if given.quick else 16, "lengths": "even"}
    typed = [given.folder, *(f"--{key}={value}" for key, value in flags.items())]
    typed += [f"--device={given.device}", f"--dtype={given.dtype}", *(["--graphs"] if graphs else [])]
    session = ours.opened(ours.parsed(typed))
    works = {"learner": learner_of(session), "rollouts": partial(ours.sampled_groups, session, 1)}
    for part, work in works.items():
        found = profiled(work, given.device, given.logs / f"{given.name}-{part}.txt")
        say(model=given.name, part=part, **found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
