"""Phase d: where the time of a step goes, on one model: of one decode step by itself, of the learner, and of all that
rollouts are; kernels and operators by time are printed as tables.

    python -m dev.gpu.profile FOLDER --name smollm2 --device cuda
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import ours
from dev.gpu.attainable import measure
from dev.gpu.decoding import Held, at_step, floor, seconds_of
from dev.gpu.rows import say
from ttrl_pop.learn.learner import Learner
from ttrl_pop.run.session import Session

ROWS = 40
REPLAYS = 50
"""Decode steps that are timed in a row; five where each is eager and on a CPU."""


def profiled(work: Callable[[], Any], device: str, title: str) -> dict[str, float]:
    """Run `work` twice, the second time watched, and print its tables. Seconds of the device's kernels and of the
    whole."""
    work()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device != "cpu" else [])
    with profile(activities=activities) as seen:
        # Not before: that watching begins takes the device's tools a while.
        began = ours.now()
        work()
        ended = ours.now()
    averages = seen.key_averages()
    order = ("self_device_time_total", "self_cpu_time_total") if device != "cpu" else ("self_cpu_time_total",)
    for key in order:
        print(title, averages.table(sort_by=key, row_limit=ROWS, max_name_column_width=80), sep="\n", flush=True)
    own = [event for event in averages if is_kernel(event)]
    busy = sum(event.self_device_time_total for event in own) / 1e6
    kernels = sum(event.count for event in own)
    return {"seconds": ended - began, "busy": busy, "kernels": kernels}


def is_kernel(event: Any) -> bool:
    """Whether the device has done it: operators of the host carry the time of their kernels too, and annotations, such
    as that of an optimizer's step, that of all kernels within them."""
    annotation = getattr(event, "is_user_annotation", False) or "#" in event.key
    return event.device_type != DeviceType.CPU and not annotation


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
    machine = measure(given.device, given.quick)

    def decode(held: Held) -> None:
        repeats = REPLAYS if graphs else 5
        seconds = seconds_of(held.step, repeats, given.device)
        watched = profiled(held.step, given.device, f"{given.name}: decode")
        least = floor(session, held, machine)
        say(
            model=given.name, part="decode", **(watched | {"seconds": seconds}), watched=watched["seconds"],
            graphs=graphs, rows=held.rows, columns=held.columns, repeats=repeats, **least,
            attained=least["floor"] / seconds,
        )  # fmt: skip

    at_step(session, decode)
    works = {"learner": learner_of(session), "rollouts": partial(ours.sampled_groups, session, 1)}
    for part, work in works.items():
        found = profiled(work, given.device, f"{given.name}: {part}")
        say(model=given.name, part=part, **found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
