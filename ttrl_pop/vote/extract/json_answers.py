r"""The answer in a JSON object: `{"reasoning": "7*8+1", "final_answer": "57"}`, also as Python writes it.

Objects are read here, and not by `json`: models write LaTeX with single backslashes (`"\frac12"`), which JSON takes for
control characters, and the number stays as it was written. Nothing is evaluated, nesting costs no recursion.
"""

import re

from ttrl_pop.vote.extract.turn import Turn
from ttrl_pop.words import NAMED

OTHER_KEYS = ("result", "output", "prediction", "choice", "option", "value")
"""Keys that hold the answer where the whole text is an object and none of its keys names an answer."""

_KEY = re.compile(NAMED, re.IGNORECASE)
_TOKEN = re.compile(r""""(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+'|[{}\[\],:"']|[^\s{}\[\],:"']++""", re.DOTALL)
_FENCED = re.compile(r"```[A-Za-z]*+\s*+(\{.*\})\s*+```", re.DOTALL)
_OBJECT = re.compile(r"""\{\s*+["']""")
_ESCAPE = re.compile(r"""\\(?:(["'\\/])|u([0-9a-fA-F]{4})|(n)(?![a-z])|([tr])(?![a-z]))""")
_SPELLED = {"n": "\n", "t": "\t", "r": "\r"}
_EMPTY = ("", "null", "none", "n/a")


def whole_json_answer(turn: Turn) -> str | None:
    """The answer in the object that is the whole text, with or without a fence around it."""
    text = turn.text.strip()
    if not text.endswith(("}", "```")):
        return None
    if fenced := _FENCED.fullmatch(text):
        text = fenced[1]
    if not text.startswith("{"):
        return None
    found = _members(text, 0)
    return _answer(found[0], OTHER_KEYS) if found and found[1] == len(text) else None


def last_json_answer(turn: Turn) -> str | None:
    """The answer in the object that begins the last line to begin with one, or in the last object of the text."""
    text = turn.text
    starts = [start.start() for start in _OBJECT.finditer(text)]
    if not starts:
        return None
    line = text.rfind("\n{")
    for start in dict.fromkeys([line + 1] * (line >= 0) + starts[-1:]):
        found = _members(text, start)
        if found and (answer := _answer(found[0])) is not None:
            return answer
    return None


def _members(text: str, start: int) -> tuple[dict[str, str], int] | None:
    """Keys and values, as written, of the object that begins there, and where it ends; None if it never does."""
    members: dict[str, str] = {}
    depth, before, key, value = 0, "", "", -1
    for token in _TOKEN.finditer(text, start):
        mark = token[0]
        if mark in ('"', "'"):
            return None
        if depth == 1 and mark in (",", "}"):
            if value >= 0:
                members[key] = text[value : token.start()].strip()
            value = -1
        elif depth == 1 and mark == ":" and value < 0:
            key, value = _text(before), token.end()
        if mark in ("{", "["):
            depth += 1
        elif mark in ("}", "]"):
            depth -= 1
            if depth == 0:
                return members, token.end()
        before = mark
    return None


def _answer(members: dict[str, str], other_keys: tuple[str, ...] = ()) -> str | None:
    """The value of the key that names an answer, of a final one if there is one; else of one of the other keys."""
    keys = [key for key in members if _KEY.fullmatch(re.sub("[_-]", " ", key).strip())]
    keys.sort(key=lambda key: "final" not in key.lower())
    for key in (*keys, *(key for key in members if key.lower() in other_keys)):
        value = members[key]
        for _ in range(3):
            inner = _members(value, 0) if value.startswith("{") else None
            if inner is None or len(inner[0]) != 1:
                break
            value = next(iter(inner[0].values()))
        said = _text(value).strip()
        if said.lower() not in _EMPTY:
            return said
    return None


def _text(value: str) -> str:
    """A text without its quotes and escapes; what is no text as it stands."""
    if len(value) < 2 or value[0] not in "\"'" or value[-1] != value[0]:
        return value
    text = _ESCAPE.sub(_unescaped, value[1:-1])
    # A character beyond the first plane is escaped as two halves.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _unescaped(escape: re.Match[str]) -> str:
    mark, code, *spelled = escape.groups()
    if code:
        return chr(int(code, 16))
    return mark or _SPELLED[next(filter(None, spelled))]
