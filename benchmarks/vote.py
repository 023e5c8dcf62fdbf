r"""Answers per second that a vote clusters: by canonical key, by the math grader, and by math-verify alone.

The answers are made by rule from a seed: each problem has a true value and two wrong ones, of a kind that mathematics
problems ask for, and each rollout writes one of them in one of its spellings. So it is known which answers are equal,
and "groups right" counts the problems whose clusters are exactly these.

All three cluster the same groups in the same process, one after the other, on one core (the math grader's worker
process waits while its asker works). The worker is started before the clock, as math-verify is imported before it.

1. by key: each distinct answer is keyed once, then each group is clustered; nothing is remembered between answers.
2. math: `MathGrader` in the vote's own way of clustering; "pairs" are those of different keys within a group, "asked"
   those put to the worker.
3. math-verify: each distinct answer of a group is parsed once as `$answer$`, pairs are merged where `verify` holds
   both ways. It has no process around it: an answer that hangs would hang it.

    python -m benchmarks.vote             the measurement
    python -m benchmarks.vote --quick     seconds, to see that all sides run
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import combinations
from statistics import median
from typing import Any

from math_verify import parse, verify

from benchmarks.rounds import BUSY
from ttrl_pop.types import Group, Mind, Problem, Rollout
from ttrl_pop.vote.graders.base import Grader
from ttrl_pop.vote.graders.exact import ExactGrader
from ttrl_pop.vote.graders.math import MathGrader
from ttrl_pop.vote.rewards.consensus import majority
from ttrl_pop.vote.rules import Rules
from ttrl_pop.vote.vote import vote

Record = dict[str, Any]
"""What was measured of one side."""
Answers = list[tuple[int, str]]
"""(which value, its spelling) of each rollout of a group."""


def number(draw: random.Random) -> list[str]:
    n = draw.randrange(1, 10**6)
    return [f"{n}", f"{n:,}", f"{n}.0", rf"{n}\text{{ cm}}", f"x = {n}", f"${n}$", rf"\frac{{{3 * n}}}{{3}}"]


def fraction(draw: random.Random) -> list[str]:
    n, d = draw.randrange(1, 10**5), draw.choice([8, 16, 25, 40])
    return [
        rf"\frac{{{n}}}{{{d}}}",
        rf"\dfrac{{{2 * n}}}{{{2 * d}}}",
        f"{n}/{d}",
        f"{n / d:.6f}",
        rf"\left(\frac{{{n}}}{{{d}}}\right)",
    ]


def point(draw: random.Random) -> list[str]:
    a, b = draw.randrange(-999, 0), draw.randrange(1, 999)
    return [f"({a},{b})", rf"\left({a}, {b}\right)", f"({a}.0, {b})", rf"\left( \frac{{{2 * a}}}{{2}}, {b} \right)"]


def surd(draw: random.Random) -> list[str]:
    a, b = draw.randrange(2, 99), draw.choice([2, 3, 5, 6, 7, 10, 11, 13])
    return [rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}", rf"\sqrt{{{b}}}\cdot {a}", f"{a}*sqrt({b})"]


def angle(draw: random.Random) -> list[str]:
    a, b = draw.randrange(1, 999), draw.choice([7, 11, 13])
    return [rf"\frac{{{a}\pi}}{{{b}}}", rf"{a}\pi/{b}", rf"\frac{{{a}}}{{{b}}}\pi", rf"\pi\cdot\frac{{{a}}}{{{b}}}"]


def polynomial(draw: random.Random) -> list[str]:
    a, b = draw.randrange(2, 99), draw.randrange(2, 99)
    return [f"(x+{a})(x-{b})", f"(x-{b})(x+{a})", f"x^2{a - b:+d}x-{a * b}", f"-{a * b}+x^2{a - b:+d}x"]


def roots(draw: random.Random) -> list[str]:
    a, b = draw.randrange(1, 999), draw.randrange(1000, 1999)
    return [rf"\{{{a}, {b}\}}", rf"\{{{b},{a}\}}", rf"\left\{{{a}, {b}.0\right\}}"]


KINDS: tuple[tuple[Callable[[random.Random], list[str]], int], ...] = (
    (number, 60),
    (fraction, 12),
    (point, 6),
    (surd, 6),
    (angle, 4),
    (polynomial, 6),
    (roots, 6),
)
"""With their shares in percent, about those of MATH-500."""


def make_groups(problems: int, rollouts: int, seed: int) -> list[Answers]:
    draw = random.Random(seed)
    kinds, shares = zip(*KINDS, strict=True)
    groups = []
    for kind in draw.choices(kinds, shares, k=problems):
        values: list[list[str]] = []
        while len(values) < 3:
            spellings = kind(draw)
            if spellings not in values:
                values.append(spellings)
        chosen = draw.choices(range(3), (5, 3, 2), k=rollouts)
        groups.append([(value, draw.choice(values[value])) for value in chosen])
    return groups


def by_grader(groups: Sequence[Answers], grader: Grader) -> list[set[frozenset[int]]]:
    found = []
    for answers in groups:
        rollouts = tuple(
            Rollout(Mind(i), (1,), (2,), (0.0,), rf"\boxed{{{answer}}}", "stop", 0)
            for i, (_, answer) in enumerate(answers)
        )
        group = Group(Problem("p", ({"role": "user", "content": "?"},), 0), rollouts)
        found.append({frozenset(cluster.members) for cluster in vote(group, Rules(grader, majority)).clusters})
    return found


def by_math_verify(groups: Sequence[Answers]) -> list[set[frozenset[int]]]:
    found = []
    for answers in groups:
        parsed = {answer: parse(f"${answer}$") for _, answer in answers}
        root = {answer: answer for answer in parsed}
        for a, b in combinations(parsed, 2):
            if root[a] != root[b] and verify(parsed[a], parsed[b]) and verify(parsed[b], parsed[a]):
                old, new = root[b], root[a]
                root = {answer: new if top == old else top for answer, top in root.items()}
        clusters: dict[str, set[int]] = {}
        for index, (_, answer) in enumerate(answers):
            clusters.setdefault(root[answer], set()).add(index)
        found.append({frozenset(members) for members in clusters.values()})
    return found


def right(groups: Sequence[Answers], found: Sequence[set[frozenset[int]]]) -> int:
    """Groups whose clusters are the values that were written."""
    return sum(
        clusters == {frozenset(i for i, (value, _) in enumerate(answers) if value == v) for v, _ in answers}
        for answers, clusters in zip(groups, found, strict=True)
    )


def measure(problems: int, rollouts: int, rounds: int, seed: int) -> Record:
    load = os.getloadavg()[0]
    if load > BUSY:
        print(f"the machine is not idle (load average {load:.1f}); these figures will say little", file=sys.stderr)
    groups = make_groups(problems, rollouts, seed)
    exact = ExactGrader()
    # As many distinct answers as it takes to time keys well, whatever the size of the groups.
    keyed = list(dict.fromkeys(answer for answers in make_groups(4000, 16, seed + 1) for _, answer in answers))[:20_000]
    seconds: dict[str, list[float]] = {"keys": [], "exact": [], "math": [], "math-verify": []}
    found: dict[str, list[set[frozenset[int]]]] = {}
    asked = timeouts = 0
    for _ in range(rounds):
        seconds["keys"].append(timed(lambda: [exact.key(answer) for answer in keyed])[0])
        took, found["exact"] = timed(lambda: by_grader(groups, exact))
        seconds["exact"].append(took)
        grader = MathGrader()
        grader.same("x+1", "1+x")
        before = grader.questions
        took, found["math"] = timed(lambda grader=grader: by_grader(groups, grader))
        seconds["math"].append(took)
        asked, timeouts = grader.questions - before, grader.timeouts
        grader.close()
        took, found["math-verify"] = timed(lambda: by_math_verify(groups))
        seconds["math-verify"].append(took)
    pairs = sum(len(keys) * (len(keys) - 1) // 2 for keys in ({exact.key(a) for _, a in group} for group in groups))
    answers = problems * rollouts
    return {
        "problems": problems,
        "rollouts": rollouts,
        "rounds": rounds,
        "load_before": load,
        "versions": {name: version(name) for name in ("math-verify", "latex2sympy2_extended", "sympy")},
        "pairs": pairs,
        "asked": asked,
        "timeouts": timeouts,
        "distinct_keyed": len(keyed),
        "keys_per_second": len(keyed) / median(seconds["keys"]),
        "sides": {
            name: {
                "answers_per_second": answers / median(seconds[name]),
                "rounds": seconds[name],
                "right": right(groups, found[name]),
            }
            for name in ("exact", "math", "math-verify")
        },
    }


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def table(measured: Record) -> str:
    rows = [("", "answers/s", "groups right")]
    rows.append((f"keys of {measured['distinct_keyed']} distinct answers", f"{measured['keys_per_second']:.0f}", ""))
    names = {"exact": "vote, exact", "math": "vote, math", "math-verify": "math-verify alone"}
    for name, side in measured["sides"].items():
        rows.append((names[name], f"{side['answers_per_second']:.0f}", f"{side['right']}/{measured['problems']}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        [
            f"{measured['problems']} problems × {measured['rollouts']} rollouts, one core; "
            f"rounds: {measured['rounds']}",
            "  ".join(f"{name} {number}" for name, number in measured["versions"].items())
            + f"; load average before: {measured['load_before']:.1f}",
            f"pairs of different keys: {measured['pairs']}; asked: {measured['asked']}; "
            f"time-outs: {measured['timeouts']}",
            "",
            *(f"{name.ljust(widths[0])}  {a.rjust(widths[1])}  {b.rjust(widths[2])}" for name, a, b in rows),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vote", description="Time votes on answers made by rule."
    )
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--rollouts", type=int, default=16, help="for each problem")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one round of 20 problems")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    given = parser.parse_args(arguments)
    if given.quick:
        given.problems, given.rounds = 20, 1
    for name in ("problems", "rollouts", "rounds"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} is at least 1, got {getattr(given, name)}")
    measured = measure(given.problems, given.rollouts, given.rounds, given.seed)
    print(json.dumps(measured) if given.json else table(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
