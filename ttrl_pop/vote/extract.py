r"""A completion's text → its final answer, or None: an abstention.

| name | answer |
|---|---|
| `auto` | by the kind of prompt: `extract_chat` or `extract_raw` |
| `first-number`, `last-number` | of all numbers in the text |
| `choice` | the letter of a multiple-choice answer |
| `regex:PATTERN` | the last match, its first group where it has groups |
| `package.module:function` | a function of (text, finish reason), which gets each text as it is |

What the token limit cut off is no answer. But for a user's own pattern, every extractor is linear in the text's
length: no pattern backtracks into what it has read.
"""

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from ttrl_pop.errors import UsageError
from ttrl_pop.plugins import load
from ttrl_pop.text import last_box
from ttrl_pop.types import FinishReason

Extract: TypeAlias = Callable[[str, FinishReason], str | None]
"""(completion text, finish reason) → the answer, or None for an abstention."""

ExtractChat: TypeAlias = Callable[[str, FinishReason, bool], str | None]
"""(completion text, finish reason, whether the chat template has opened the thoughts already) → the answer, or None."""

_ANSWER_LINE = re.compile(
    r"^[ \t>#*_-]*+(?:the[ \t]++)?(?:final[ \t]++)?answer[ \t*_]*+:(.*)", re.IGNORECASE | re.MULTILINE
)
_ANSWER_IS = re.compile(r"\banswer is:?(.*)", re.IGNORECASE)
# GSM8K's mark stands on the last line; on any other, `####` opens a heading.
_HASH_LINE = re.compile(r"[ \t]*+####(?!#)(.*)")
_DECIMAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3}(?![0-9]))++|[0-9]++)(?:\.[0-9]++)?|\.[0-9]++)"
_NUMBER = re.compile(rf"(?<![\w.])[-+−–]?(?:[0-9]++ [0-9]++/[0-9]++|{_DECIMAL}(?:/[0-9]++(?:\.[0-9]++)?)?)")
_NUMBER_MAY_GO_ON = re.compile(r"(?:[./]|,[0-9]{0,2}| [0-9]++/?)?")

_ADORNMENT = "*_` \t\r"
_OPEN = r"(?:[\s*_`$({\[]|\\(?:text|textbf|mathrm|mathbf|boxed)\{)*+"
# A letter alone, or with a mark behind it and the text of the choice: `C`, `(C)`, `**C.** Paris`, `\text{C}`.
_CHOICE = re.compile(rf"{_OPEN}(?:([A-Z])[\s*_`$)}}\].:]*+$|([A-Z])[*_`]*+[).:\]])")


@dataclass(frozen=True, slots=True)
class Extractor:
    """How answers are read from completions of chat prompts, and from those of raw ones."""

    name: str
    """What the user calls it, for errors."""
    chat: ExtractChat
    raw: Extract

    def answer(self, text: str, finish_reason: FinishReason, is_chat: bool, thinking: bool) -> str | None:
        """The answer of a completion, or None for an abstention.

        Args:
            is_chat: the kind of its prompt.
            thinking: chat prompts end inside the thoughts.

        Raises:
            UsageError: a function of the user's returned something else.
        """
        found = self.chat(text, finish_reason, thinking) if is_chat else self.raw(text, finish_reason)
        if not isinstance(found, str | None):
            raise UsageError(f"extract {self.name!r} must return str or None, got {type(found).__name__}")
        return found


def build_extractor(name: str) -> Extractor:
    """The extractor that `name` stands for (see the table above), ready to read.

    Raises:
        UsageError: there is none, it cannot be imported or called, or the pattern is not valid.
    """
    if name.startswith("regex:"):
        try:
            return _of_function(name, partial(extract_regex, re.compile(name.removeprefix("regex:"))))
        except re.error as error:
            raise UsageError(f"extract {name!r} is not a valid regular expression: {error}") from error
    if name == AUTO.name:
        return AUTO
    function = load("extractor", name)
    return Extractor(name, function, function) if function in OF_THOUGHTS else _of_function(name, function)


def extract_chat(text: str, finish_reason: FinishReason, thinking: bool = False) -> str | None:
    r"""Answer of a chat completion, read after `</think>`; thoughts that never closed hold no answer.

    The last balanced, non-empty `\boxed{}`, else the last line `Answer: ...` (`**Answer:**`, `Final answer:`),
    else `#### ...` on the last line, else None. Of a completion that the token limit cut off, the last line does
    not count as such a line: its end is missing. A box that was closed counts.

    Args:
        thinking: the prompt ends inside the thoughts (a chat template that writes `<think>` itself).
    """
    spoken = _spoken(text, thinking)
    if spoken is None:
        return None
    box = last_box(spoken)
    if box is not None:
        return box
    lines = _finished_lines(spoken, finish_reason)
    return _last_answer_line(lines) or _hash_answer(lines)


def extract_raw(text: str, finish_reason: FinishReason) -> str | None:
    """Answer of a raw completion: the first number on its first non-blank line, else that line, else None; read after
    thoughts, if there are any.

    A number is signed or not, with thousands separators, decimals, as a/b or mixed; a sentence's period is no
    part of it. Where the token limit cut the line, a number at its very end (`5`, `3.`, `56,`, `1/`) may have gone on,
    and so may the line: neither is an answer.
    """
    spoken = _spoken(text, thinking=False)
    if spoken is None:
        return None
    line, newline, _ = spoken.lstrip().partition("\n")
    is_cut = finish_reason == "length" and not newline
    number = _NUMBER.search(line)
    if number and not (is_cut and _NUMBER_MAY_GO_ON.fullmatch(line, number.end())):
        return number[0]
    return None if is_cut else line.strip() or None


def extract_first_number(text: str, finish_reason: FinishReason, thinking: bool = False) -> str | None:
    """The first number after the thoughts; none if the token limit may have cut it."""
    spoken = _spoken(text, thinking) or ""
    number = _NUMBER.search(spoken)
    if number is None or (finish_reason == "length" and _NUMBER_MAY_GO_ON.fullmatch(spoken, number.end())):
        return None
    return number[0]


def extract_last_number(text: str, finish_reason: FinishReason, thinking: bool = False) -> str | None:
    """The last number after the thoughts; none in a text that the token limit cut off, where more was to come."""
    if finish_reason == "length":
        return None
    numbers = deque(_NUMBER.finditer(_spoken(text, thinking) or ""), maxlen=1)
    return numbers[0][0] if numbers else None


def extract_choice(text: str, finish_reason: FinishReason, thinking: bool = False) -> str | None:
    """The letter of a multiple-choice answer: in the last box, on the last line `Answer: ...`, after the last
    `answer is`, or opening the text.

    Only a letter that stands for a choice counts (`C`, `(C)`, `C.`, `**C**`, `C) Paris`), never one of a sentence.
    """
    spoken = _spoken(text, thinking)
    if spoken is None:
        return None
    if (box := last_box(spoken)) is not None:
        return box.upper() if len(box) == 1 and box.isalpha() else _letter(box)
    lines = _finished_lines(spoken, finish_reason)
    if (named := _last_answer_line(lines)) is not None:
        return _letter(named)
    if said := _ANSWER_IS.findall(lines):
        return _letter(str(said[-1]))
    return _letter(lines.lstrip().partition("\n")[0])


def extract_regex(pattern: re.Pattern[str], text: str, finish_reason: FinishReason) -> str | None:
    """Last match of `pattern` that does not touch a cut end; its first group where it has groups."""
    last = None
    for match in pattern.finditer(text):
        if match[0] and not (finish_reason == "length" and match.end() == len(text)):
            last = match
    if last is None:
        return None
    found: str | None = last[1] if pattern.groups else last[0]
    return found or None


AUTO = Extractor("auto", extract_chat, extract_raw)
OF_THOUGHTS = (extract_first_number, extract_last_number, extract_choice)
"""Functions that can be told that the chat template has opened the thoughts; a user's own is told nothing."""


def _of_function(name: str, function: Extract) -> Extractor:
    """The extractor that reads all completions alike, as they are."""
    return Extractor(name, lambda text, finish_reason, _thinking: function(text, finish_reason), function)


def _spoken(text: str, thinking: bool) -> str | None:
    """What follows the thoughts; None where they never closed."""
    if "</think>" in text:
        text = text[text.rfind("</think>") + len("</think>") :]
    elif thinking:
        return None
    return None if "<think>" in text else text


def _finished_lines(text: str, finish_reason: FinishReason) -> str:
    return text[: text.rfind("\n") + 1] if finish_reason == "length" else text


def _last_answer_line(text: str) -> str | None:
    """What follows the mark on the last line `Answer: ...` that has something after it."""
    for rest in reversed(_ANSWER_LINE.findall(text)):
        if answer := str(rest).strip(_ADORNMENT):
            return answer
    return None


def _hash_answer(text: str) -> str | None:
    text = text.rstrip()
    line = _HASH_LINE.match(text, text.rfind("\n") + 1)
    return (line[1].strip(_ADORNMENT) or None) if line else None


def _letter(text: str) -> str | None:
    match = _CHOICE.match(text)
    return match[1] or match[2] if match else None
