r"""How an answer is read from a completion, by name.

| name | answer |
|---|---|
| `auto` | by the kind of prompt: `extract_chat` or `extract_raw` |
| `first-number`, `last-number` | of all numbers in the text |
| `choice` | the letter of a multiple-choice answer |
| `regex:PATTERN` | the last match, its first group where it has groups |
| `package.module:function` | a function of (text, finish reason), which gets each text as it is |
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from ttrl_pop.errors import UsageError
from ttrl_pop.plugins import load
from ttrl_pop.thoughts import Thinking
from ttrl_pop.types import FinishReason
from ttrl_pop.vote.extract.chat import extract_chat
from ttrl_pop.vote.extract.choice import extract_choice
from ttrl_pop.vote.extract.numbers import extract_first_number, extract_last_number, extract_raw
from ttrl_pop.vote.extract.pattern import PatternExtractor

Extract: TypeAlias = Callable[[str, FinishReason], str | None]
"""(completion text, finish reason) → the answer, or None for an abstention."""

ExtractSpoken: TypeAlias = Callable[[str, FinishReason, Thinking], str | None]
"""(completion text, finish reason, what is known of the thoughts) → the answer, or None."""


@dataclass(frozen=True, slots=True)
class Extractor:
    """How answers are read from completions of chat prompts, and from those of raw ones."""

    name: str
    """What the user calls it, for errors."""
    chat: ExtractSpoken
    raw: ExtractSpoken

    def answer(self, text: str, finish_reason: FinishReason, is_chat: bool, thinking: Thinking) -> str | None:
        """The answer of a completion, or None for an abstention.

        Args:
            is_chat: the kind of its prompt.
            thinking: what is known of the thoughts of chat prompts.

        Raises:
            UsageError: a function of the user's returned something else.
        """
        if is_chat:
            found = self.chat(text, finish_reason, thinking)
        else:
            # No chat template opens the thoughts of a raw prompt.
            marks = thinking if isinstance(thinking, tuple) and thinking[0] else False
            found = self.raw(text, finish_reason, marks)
        if not isinstance(found, str | None):
            raise UsageError(f"extract {self.name!r} must return str or None, got {type(found).__name__}")
        return found


def build_extractor(name: str) -> Extractor:
    """The extractor that `name` stands for (see the table above), ready to read.

    Raises:
        UsageError: there is none, it cannot be imported or called, or the pattern is not valid.
    """
    if name.startswith("regex:"):
        return _of_function(name, PatternExtractor(name.removeprefix("regex:")))
    if name == AUTO.name:
        return AUTO
    function = load("extractor", name)
    return Extractor(name, function, function) if function in OF_THOUGHTS else _of_function(name, function)


AUTO = Extractor("auto", extract_chat, extract_raw)
OF_THOUGHTS = (extract_first_number, extract_last_number, extract_choice)
"""Functions that can be told of the thoughts; a user's own is told nothing."""


def _of_function(name: str, function: Extract) -> Extractor:
    """The extractor that reads all completions alike, as they are."""

    def extract(text: str, finish_reason: FinishReason, _thinking: Thinking) -> Any:
        return function(text, finish_reason)

    return Extractor(name, extract, extract)
