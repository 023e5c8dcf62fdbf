"""Texts of problem files that a chat model is asked rather than made to continue.

A string in a field `prompt` says nothing of what it is: a text to continue, as base models take it, or a bare question,
as data sets for reinforcement learning have it. The model tells: where it has a chat template, and the text holds none
of the marks with which that writes a turn, the text becomes a turn as a `question` does.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ttrl_pop.model.prompts import rendered_turn
from ttrl_pop.read.question import as_turn
from ttrl_pop.types import Problem

SHORTEST_MARK = 3
"""Characters of a mark, at least: a special token such as `!` stands in ordinary questions."""

_MESSAGE = "ThisStandsForAMessage"


def with_turns(tokenizer: Any, problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """The problems, in which a text without a mark of the chat template is a turn. Done again, it changes nothing."""
    marks = template_marks(tokenizer)
    if marks is None:
        return tuple(problems)
    found = re.compile("|".join(map(_pattern, sorted(marks))) or r"(?!)")
    return tuple(
        problem
        if problem.is_chat or found.search(str(problem.prompt))
        else replace(problem, prompt=as_turn(str(problem.prompt)))
        for problem in problems
    )


def notice_of_turns(before: Iterable[Problem], after: Iterable[Problem]) -> str | None:
    """What the user should know of texts that became turns, if any did."""
    texts = [now.is_chat for was, now in zip(before, after, strict=True) if not was.is_chat]
    if not (turned := sum(texts)):
        return None
    kept = f" ({len(texts) - turned} others hold its marks and stay as they are)" if turned < len(texts) else ""
    return (
        f"{turned} text prompt{'s' if turned > 1 else ''} made chat turns that ask for a boxed answer, as the model "
        f"has a chat template{kept}; --raw leaves them as they stand, --chat says that turns are meant"
    )


def template_marks(tokenizer: Any) -> frozenset[str] | None:
    """What a chat template sets messages apart by: special tokens, and words such as `[INST]` or `USER:`.

    None where there is no template, or it takes no lone turn of a user.
    """
    if (text := rendered_turn(tokenizer, _MESSAGE)) is None:
        return None
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= set(tokenizer.all_special_tokens)
    for token in sorted(special, key=len, reverse=True):
        text = text.replace(token, "\n")
    return frozenset(mark for mark in (*special, *_beside_messages(text)) if _is_mark(mark))


def _beside_messages(text: str) -> Iterator[str]:
    """The line before and the lines behind a message; of a line that it stands in itself, the word beside it."""
    pieces = text.split(_MESSAGE)
    for before in pieces[:-1]:
        yield from before.split("\n")[-1].split()[-1:] or _lines(before)[-1:]
    for behind in pieces[1:]:
        yield from behind.split("\n")[0].split()[:1] or _lines(behind)[:1]
        yield from _lines(behind)[-1:]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def _pattern(mark: str) -> str:
    """A mark that begins as a word does stands at the beginning of one: `superuser:` holds no `user:`."""
    return (r"\b" if mark[0].isalnum() else "") + re.escape(mark)


def _is_mark(text: str) -> bool:
    return len(text) >= SHORTEST_MARK and any(not (c.isalnum() or c.isspace()) for c in text)
