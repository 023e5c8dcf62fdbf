r"""Names in front of an equals sign that only say what the answer is of: `x=5`, `\text{Area}=7`, `P(A)=\frac12`.

    behind_label(r"\text{Area} = 7")     " 7"          behind_label("xyz=6")     None: an equation

Simplifications:

1. Names differ without the answers' differing: `x=5` is `y=5`. In a list they count (`x=1, y=2`).
2. Letters in brackets are a label of tuples where they stand in their alphabet's order: `(y,x)=(2,1)` is itself alone.
3. What measures a figure, a function or an angle is a label only before a number: `AB=CD` is an equation.
"""

import re

from ttrl_pop.vote.graders.spelling import unwrapped

MAX_NAME = 80
"""Longest text that is a name, in characters."""

_GREEK = r"\\(?:alpha|beta|gamma|delta|(?:var)?epsilon|theta|lambda|mu|pi|rho|sigma|tau|(?:var)?phi|omega|Delta|Omega)"
_LETTER = rf"(?:[A-Za-z]|{_GREEK})(?:\s*_\s*(?:[A-Za-z0-9]|\{{[A-Za-z0-9 ]+\}}))?'?"
_SYMBOL = re.compile(rf"{_LETTER}(?:\([a-z](?:,[a-z])*\))?")
_PLACES = re.compile(rf"\(\s*{_LETTER}(?:\s*,\s*{_LETTER})+\s*\)")
_WORDS = re.compile(r"[A-Za-z]{3,}(?:[ -][A-Za-z]+){0,5}(?: ?\\(?:tri)?angle ?[A-Z]{1,4})?")
_NOT_A_NAME = re.compile(
    r"\b(?:if|or|and|not|for|when|unless|where|iff|then|only|sin|cos|tan|cot|sec|csc|log|exp|sqrt|max|min|gcd|lcm)\b"
)
_ARGUMENT = r"(?:\((?:[^()]|\([^()]*\))*\)|\[[^\[\]]*\])"
_MEASURE = re.compile(
    rf"""(?:m\s*)?\\(?:angle|triangle|overline|vec)\s*\{{?[A-Z]{{1,4}}\}}?
    | [A-Z]{{2,4}} | \|[A-Z]{{2}}\| | \[[A-Z]{{3,}}\]
    | (?:P|Pr|\\Pr|E|Var|SD)\s*{_ARGUMENT} | [fghpqFGHPQST](?:\^\{{-1\}}|'+)?\s*{_ARGUMENT} | [a-zA-Z]\s*\([0-9]+\)
    | n\([A-Z]\) | \|[A-Z](?:\s*\\c[ua]p\s*[A-Z])*\| | \\?(?:det|dim|gcd|lcm|rank|tr|deg)\s*(?:[A-Z]|{_ARGUMENT})
    | \\(?:sin|cos|tan|cot|sec|csc)\s*(?:\\angle\s*)?(?:[A-Z]|{_GREEK})""",
    re.VERBOSE,
)
_OTHER_MEASURE = re.compile(r"\\(?:angle|triangle|overline|vec|sin|cos|tan)(?![a-zA-Z])|[A-Z]{2}|[fghpqFGHPQST]\s*\(")
_MARK = re.compile(r"[()=]")


def label_of(before: str, behind: str) -> str | None:
    """The name, in one spelling, that a text before an equals sign is of what stands behind it; None if it is none."""
    if len(before) > MAX_NAME:
        return None
    name = " ".join(unwrapped(before).split())
    if _SYMBOL.fullmatch(name):
        return name
    if _PLACES.fullmatch(name):
        letters = [letter.strip(" ()\\") for letter in name.split(",")]
        return name.replace(" ", "") if letters == sorted(letters) and behind.lstrip().startswith("(") else None
    if _WORDS.fullmatch(name) and (len(name) > 3 or "\\" in before):
        is_label = not _NOT_A_NAME.search(name) and not _WORDS.fullmatch(unwrapped(behind).strip())
        return name.casefold() if is_label else None
    if _MEASURE.fullmatch(name) and any(map(str.isdigit, behind)) and not _OTHER_MEASURE.search(behind):
        return name.replace(" ", "")
    return None


def behind_label(text: str) -> str | None:
    """What stands behind a label and the only equals sign outside brackets; None if there is no such."""
    at, depth = -1, 0
    for mark in _MARK.finditer(text):
        if mark[0] != "=":
            depth += 1 if mark[0] == "(" else -1
        elif depth == 0:
            if at >= 0:
                return None
            at = mark.start()
    return text[at + 1 :] if at >= 0 and label_of(text[:at], text[at + 1 :]) else None
