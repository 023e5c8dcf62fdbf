r"""Lines that name the answer: `Answer: 57`, `✅ **Final Answer:** 57`, `答案：57`, a heading with the answer below it.

A line opens with a word for "answer" (`ttrl_pop.words`), after signs, a list number and words that may
stand before it. Behind the word comes

1. a colon or an arrow, and then the answer, whatever it is;
2. `=`, a dash, the last cell of a table, or the end of what is bold or bracketed, and then a value: a number with its
   unit, or a formula;
3. nothing, and the answer stands below, on the only line of its paragraph.

A sentence, `So the answer is 57.`, is no such line: it counts where nothing marks an answer, and only with a value.
"""

import re
from collections import deque
from collections.abc import Sequence
from itertools import islice

from ttrl_pop.vote.extract.remarks import ADORNMENT, DONE, answer_itself, is_value
from ttrl_pop.vote.extract.turn import Turn
from ttrl_pop.words import AFTER, ANSWER, IS_WORD, NAMED, any_of, lines_with, words_of

MOST_LINES = 1000
"""Lines that name an answer, counted from the end, of which one must have it."""
LONGEST_FORMULA = 20
"""Lines of a formula below a heading, at most."""

_NOUNS = words_of(ANSWER)
_SIGNS = r"[^\w\n]*+(?:_[^\w\n]*+)*+"
# Signs, a list number, and a command or a tag that makes bold.
_BEFORE = rf"""{_SIGNS} (?: (?:step[ ])? \d{{1,3}}[.):、．] {_SIGNS} )?+
    (?: (?: (?:text|math)(?:bf|it|rm)? \{{ | (?:b|strong|em|i|u|p|h[1-6]) > ) {_SIGNS} )?+"""
_LINE = re.compile(
    rf"""{_BEFORE} {NAMED} (?P<closed>[ \t]*+ (?:\([^()\n]{{1,60}}\))?+ [ \t*_`\])】」』》}}{DONE}]*+)
    (?: (?P<mark> (?:{IS_WORD})?+ [ \t]*+ (?: [:：∶﹕] | [→⇒➡➔►] | [-=]> ) \ufe0f?+ )
      | (?P<weak> =(?![=>]) | [-–—](?=[ \t]) | \|(?=[^|\n]*\|[ \t]*+$) ) | (?P<verb> {IS_WORD} ) )?+
    (?P<rest>.*)""",
    re.VERBOSE | re.IGNORECASE,
)
_SAID = re.compile(
    rf"(?<![A-Za-z])(?:{any_of(ANSWER)})(?:[ \t]*+(?:{any_of(AFTER)}))?+[ \t*_]*+{IS_WORD}[ \t]*+[:：]?+", re.IGNORECASE
)
# `\textbf{Answer:} 57` closes behind the colon.
_CLOSED = re.compile(r"\A[*_`\s]*+[}】」]++[*_`]*+")
_VERB = re.compile(r"[ \t]*+(?:is|was|are)(?!\w)", re.IGNORECASE)
_FORMULA_OPENS = {"$$": "$$", r"\[": r"\]"}
_SENTENCE_ENDS = (".", "!", "?", ":", ",", "。", "：")
_LIST_MARK = re.compile(r"\A\s*+(?:>\s*+)*+(?:[-•*]\s++)?+")
_BLANK = re.compile(r"\s*+(?:[-=*_─—]*+|```[a-z]*+)\s*+")


def last_answer_line(turn: Turn) -> str | None:
    """What the last finished line that names an answer names, or what stands below that line."""
    lines = turn.finished_lines.split("\n")
    found = ((index, line) for index in lines_with(_NOUNS, lines) if (line := _LINE.match(lines[index])))
    for index, line in islice(found, MOST_LINES):
        if answer := _named(line) or _below(line, lines, index, turn.is_cut):
            return answer
    return None


def last_said_answer(text: str) -> str | None:
    """The value in the last sentence `… the answer is 57.`"""
    lines = text.split("\n")
    for index in lines_with(_NOUNS, lines):
        if said := deque(_SAID.finditer(lines[index]), maxlen=1):
            answer = answer_itself(lines[index][said[0].end() :])
            return answer if answer and is_value(answer) else None
    return None


def _named(line: re.Match[str]) -> str | None:
    rest = _CLOSED.sub("", line["rest"])
    if line.string.lstrip().startswith("|"):
        # A row of a table, whose first cell has the mark.
        rest = rest.strip(ADORNMENT).removeprefix("|")
    answer = answer_itself(rest) if rest.strip(ADORNMENT) else None
    if answer is None:
        return None
    if line["mark"]:
        # `My answer: is yes` goes on with a sentence.
        return None if _VERB.match(rest) and not is_value(answer) else answer
    is_apart = line["weak"] or line["closed"].strip(" \t")
    return answer if is_apart and not line["verb"] and is_value(answer) else None


def _below(line: re.Match[str], lines: Sequence[str], index: int, is_cut: bool) -> str | None:
    """The answer under a heading: a formula, or the only line of a paragraph that names none itself."""
    if line["rest"].strip(ADORNMENT + ":：}"):
        return None
    below = _next(lines, index + 1)
    if below is None:
        return None
    opening = lines[below].strip()
    if opening in _FORMULA_OPENS:
        return _formula(lines[below + 1 : below + 1 + LONGEST_FORMULA], _FORMULA_OPENS[opening])
    if _LINE.match(lines[below]):
        return None
    answer = answer_itself(_LIST_MARK.sub("", lines[below]))
    after = _next(lines, below + 1)
    if answer is None or (after is not None and _is_more(lines[after])):
        return None
    is_last = after is None and not is_cut
    is_apart = after is not None and not lines[below + 1].strip() and not lines[below].rstrip().endswith(_SENTENCE_ENDS)
    return answer if is_value(answer) or is_last or is_apart else None


def _is_more(line: str) -> bool:
    """Whether a line below an answer is another part of it, and no remark."""
    return is_value(_LIST_MARK.sub("", line))


def _formula(lines: Sequence[str], closing: str) -> str | None:
    for end, line in enumerate(lines):
        if line.strip().rstrip(".") == closing:
            return " ".join(lines[:end]).strip() or None
    return None


def _next(lines: Sequence[str], start: int) -> int | None:
    """The next line that is neither blank nor a rule."""
    return next((index for index in range(start, len(lines)) if not _BLANK.fullmatch(lines[index])), None)
