r"""A completion's text → its final answer, or None: an abstention.

Every extractor is linear in the text's length: no pattern backtracks into what it has read.

Simplification: a completion that the token limit cut inside its thoughts abstains only if it wrote `<think>`
itself; where the chat template did, and no `</think>` came, the thoughts look like an answer's text.
"""

import importlib
import re
from collections.abc import Callable
from typing import TypeAlias

from ttrl_pop.boxes import last_box
from ttrl_pop.errors import UsageError
from ttrl_pop.types import FinishReason

Extract: TypeAlias = Callable[[str, FinishReason], str | None]
"""(completion text, finish reason) → the answer, or None for an abstention."""

_ANSWER_LINE = re.compile(
    r"^[ \t>#*_-]*+(?:the[ \t]++)?(?:final[ \t]++)?answer[ \t*_]*+:(.*)", re.IGNORECASE | re.MULTILINE
)
_HASH_LINE = re.compile(r"^[ \t]*+####(?!#)(.*)", re.MULTILINE)
_DECIMAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?|\.[0-9]++)"
_NUMBER = re.compile(rf"(?<![\w.])[-+−–]?(?:[0-9]++ [0-9]++/[0-9]++|{_DECIMAL}(?:/[0-9]++(?:\.[0-9]++)?)?)")
_NUMBER_MAY_GO_ON = re.compile(r"(?:[./]|,[0-9]{0,2}| [0-9]++/?)?")


def extract_chat(text: str, finish_reason: FinishReason) -> str | None:
    r"""Answer of a chat completion, read after `</think>`; thoughts that never closed hold no answer.

    The last balanced, non-empty `\boxed{}`, else the last line `Answer: ...` (`**Answer:**`, `Final answer:`),
    else the last line `#### ...`, else None. Of a completion that the token limit cut off, the last line does
    not count as such a line: its end is missing. A box that was closed counts.
    """
    spoken = text[text.rfind("</think>") + len("</think>") :] if "</think>" in text else text
    if "<think>" in spoken:
        return None
    box = last_box(spoken)
    if box is not None:
        return box
    if finish_reason == "length":
        spoken = spoken[: spoken.rfind("\n") + 1]
    return _last_line(_ANSWER_LINE, spoken) or _last_line(_HASH_LINE, spoken)


def extract_raw(text: str, finish_reason: FinishReason) -> str | None:
    """Answer of a raw completion: the first number on its first non-blank line, else that line, else None.

    A number is signed or not, with thousands separators, decimals, as a/b or mixed; a sentence's period is no
    part of it. Where the token limit cut the line, a number at its very end (`5`, `3.`, `56,`, `1/`) may have gone on,
    and so may the line: neither is an answer.
    """
    line, newline, _ = text.lstrip().partition("\n")
    is_cut = finish_reason == "length" and not newline
    number = _NUMBER.search(line)
    if number and not (is_cut and _NUMBER_MAY_GO_ON.fullmatch(line, number.end())):
        return number[0]
    return None if is_cut else line.strip() or None


def resolve_extract(name: str, is_chat: bool) -> Extract:
    """`auto` by the kind of prompt, or the function that `package.module:function` names.

    Raises:
        UsageError: `name` is neither, cannot be imported or is not callable.
    """
    if name == "auto":
        return extract_chat if is_chat else extract_raw
    module_name, _, attribute = name.partition(":")
    if not (module_name and attribute):
        raise UsageError(f"extract must be auto or package.module:function, got {name!r}")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise UsageError(f"extract {name!r} cannot be imported ({error}); is its folder on PYTHONPATH?") from error
    except AttributeError as error:
        raise UsageError(f"extract {name!r}: module {module_name} has no {attribute!r}") from error
    if not callable(function):
        raise UsageError(f"extract {name!r} must be a function, got a {type(function).__name__}")
    extract: Extract = function
    return extract


def _last_line(pattern: re.Pattern[str], text: str) -> str | None:
    """What follows the mark on the last line that has the mark and something after it."""
    for rest in reversed(pattern.findall(text)):
        if answer := str(rest).strip("*_` \t\r"):
            return answer
    return None
