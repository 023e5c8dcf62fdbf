"""The harder example sets, by rule: two-digit sums, and sequences that go up by the same number.

    python dev/example_sets.py     writes examples/{sums,sequences}.jsonl and .gold.jsonl

Each is what the rule draws first with its name as the seed: none was chosen by what a model made of it. The rules were,
by what the built-in model says before training: its majority is right for some, and wrong for others (docs/STUDIES.md).
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

PROBLEMS = 24
EXAMPLES = Path(__file__).parent.parent / "examples"

Row = dict[str, str]


def a_sum(draw: random.Random) -> Row:
    """A sum of two numbers from 11 to 29, behind two answered ones."""
    a, b = draw.randint(11, 29), draw.randint(11, 29)
    answered = "".join(f"Q: What is {c} plus {d}?\nA: {c} plus {d} is {c + d}.\n" for c, d in ((21, 14), (46, 27)))
    prompt = f"{answered}Q: What is {a} plus {b}?\nA: {a} plus {b} is"
    return {"id": f"{a}+{b}", "prompt": prompt, "answer": str(a + b)}


def a_sequence(draw: random.Random) -> Row:
    """Seven terms of a sequence from 1 to 30 on that goes up by 2 to 12, to be continued by one."""
    first, step = draw.randint(1, 30), draw.randint(2, 12)
    *shown, answer = (str(first + step * place) for place in range(8))
    return {"id": f"{first}+{step}n", "prompt": ", ".join(shown) + ",", "answer": answer}


RULES: dict[str, Callable[[random.Random], Row]] = {"sums": a_sum, "sequences": a_sequence}


def rows(name: str) -> list[Row]:
    """The set of this name: what its rule draws first, each once."""
    draw, drawn = random.Random(name), {}
    while len(drawn) < PROBLEMS:
        row = RULES[name](draw)
        drawn[row["id"]] = row
    return list(drawn.values())


def lines(name: str, *fields: str) -> str:
    return "".join(json.dumps({field: row[field] for field in fields}) + "\n" for row in rows(name))


def files(name: str) -> dict[Path, str]:
    """The set's files and what is in them."""
    return {
        EXAMPLES / f"{name}.jsonl": lines(name, "id", "prompt"),
        EXAMPLES / f"{name}.gold.jsonl": lines(name, "id", "answer"),
    }


if __name__ == "__main__":
    for name in RULES:
        for file, text in files(name).items():
            file.write_text(text, encoding="utf-8")
