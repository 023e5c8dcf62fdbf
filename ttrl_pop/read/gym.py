"""Rows of problems that reasoning-gym makes by rule: `gym:NAME[:SIZE[:SEED]]`, with gold."""

import difflib
from collections.abc import Iterator
from typing import Any

from ttrl_pop.errors import UsageError
from ttrl_pop.read.hub import HubRows
from ttrl_pop.read.lines import source_name
from ttrl_pop.read.rows import Notice
from ttrl_pop.text import shown

PREFIX = "gym:"
SIZE, LARGEST, SEED = 100, 1_000_000, 0
"""Problems where no number is given, the most of them, and the seed where none is given."""


def gym_rows(source: str, notice: Notice) -> HubRows:
    """The first SIZE problems that the task NAME has with SEED: `{"id", "question"}`, and `"answer"` where it has one.

    They are the same whenever they are asked for, with one version of reasoning-gym (https://pypi.org/project/reasoning-gym).

    Args:
        notice: is told where the task has a rule of its own for what is right, which is not followed here.

    Raises:
        UsageError: reasoning-gym is not there or knows no such task, or a number is none.
    """
    said = source_name(source)
    name, *numbers = source.removeprefix(PREFIX).split(":")
    if not name or len(numbers) > 2:
        raise UsageError(f"{said}: a task of reasoning-gym is named gym:NAME[:SIZE[:SEED]]")
    size = _number(said, "SIZE", numbers[0], 1) if numbers else SIZE
    seed = _number(said, "SEED", numbers[1], 0) if len(numbers) > 1 else SEED
    try:
        from reasoning_gym.dataset import ProceduralDataset
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise UsageError(
            f"{said}: problems of reasoning-gym need that package ({error}); run: pip install 'ttrl-pop[gym]'"
        ) from error
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, 3)
        meant = f"; did you mean {', '.join(near)}?" if near else ": its README lists them"
        raise UsageError(f"{said}: reasoning-gym has no task '{shown(name)}'{meant}")
    try:
        made = create_dataset(name, size=size, seed=seed)
    except (TypeError, ValueError, AssertionError) as error:
        raise UsageError(f"{said}: reasoning-gym cannot make {size} problems of it ({shown(str(error))})") from error
    if type(made).score_answer is not ProceduralDataset.score_answer:
        notice(f"{said}: reasoning-gym has a rule of its own for what is right; here it is what equals its answer")
    return HubRows(_rows(name, made), f"{PREFIX}{name}:{size}:{seed}")


def _rows(name: str, made: Any) -> Iterator[dict[str, str]]:
    for number in range(len(made)):
        item = made[number]
        answer = item.get("answer")
        gold = {} if answer is None else {"answer": str(answer)}
        yield {"id": f"{name}-{number}", "question": str(item["question"]), **gold}


def _number(said: str, what: str, text: str, least: int) -> int:
    if not (text.isascii() and text.isdecimal() and least <= int(text[:10]) <= LARGEST):
        raise UsageError(f"{said}: {what} is a whole number from {least} to {LARGEST}, got '{shown(text)}'")
    return int(text)
