"""What tests of displays share: hostile texts, metrics, tallies, and what is drawn of them."""

import io
import re
from fractions import Fraction

from rich.console import Console

from ttrl_pop.cli.display.base import Display
from ttrl_pop.cli.display.live import Live
from ttrl_pop.types import Cluster, Group, Problem, StepReport, Tally

SGR = re.compile(r"\x1b\[[\d;]*m")
HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "\x1b[2J\x1b[H\x1b]0;title\x07",
    "\x9b31m\x90q\x9c",
    "[bold red]loud[/bold red] [link=x]y[/] :boom: [/]",
    "\u202eabc\u2066def\u200f\u061c",
    "nul\x00bell\x07back\x08tab\tline\nreturn\rfeed\x0c",
    "\ud800\udfff lone",
    "\u2028para\u2029 zero\u200bwidth\ufeff \U000e0041",
    "x" * 1_000_000,
    "好" * 100,
    "\x1b" * 100,
]
METRICS = {
    "vote/agreement": 0.7123,
    "rollout/accuracy": 0.62,
    "vote/label_accuracy": 0.8125,
    "reward/mean": 0.66,
    "rollout/entropy": 0.41,
    "population/sigma": 0.0049,
    "learn/kl": None,
    "learn/bad_updates": 0,
    "time/step": 12.34,
    "time/tokens_per_s": 410.4,
}


def tally_of(problem: str = "p", label: str | None = "7", votes: int = 3, of: int = 4) -> Tally:
    answers = (label,) * votes + (None,) * (of - votes)
    clusters = () if label is None else (Cluster(label, tuple(range(votes)), Fraction(votes, of)),)
    return Tally(Group(Problem(problem, "?", 0), ()), answers, clusters, label, 0 if clusters else None, (0.0,) * of)


def rendered(renderable, width: int = 80, height: int = 24, **options) -> str:
    file = io.StringIO()
    settings = {"force_terminal": True, "color_system": "truecolor", "legacy_windows": False} | options
    Console(file=file, width=width, height=height, **settings).print(renderable)
    return file.getvalue()


def plain(renderable, width: int = 80, height: int = 24) -> list[str]:
    return [line.rstrip() for line in SGR.sub("", rendered(renderable, width, height)).splitlines()]


def live(clock=lambda: 0.0) -> Live:
    return Live(Console(file=io.StringIO(), force_terminal=True, width=80, height=24), clock)


def a_step(display: Display, step: int, problems: list[str], **metrics) -> None:
    display.phase(f"step {step}: sampling", len(problems))
    for problem in problems:
        display.tally(tally_of(problem), correct=None)
    display.step(StepReport(step, METRICS | metrics))
