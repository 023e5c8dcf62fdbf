r"""The letter of a multiple-choice answer: `Answer: D`, `\boxed{\text{(d)}}`, `The answer is D.`, `(D) is correct`.

Where several marks name an answer, the first that names a letter counts, in the order of `marked_answers`: a box around
a formula hides no answer line. A letter stands for a choice, and not for a word or a list of choices:

| read | not read |
|---|---|
| `D`, `(D)`, `**D.**`, `\text{D}`, `"D"`, `Ｄ`, and `d` likewise | `a cat`, `I think`, `AB`, `A1`, `C++` |
| `Option D`, `choice (d)`, `the correct answer is D` | `not D`, `neither A nor B` |
| `D. Paris`, `(D) Paris`, `D: 4`, `D - Paris`, `D, since ...` | `A/C`, `A, B`, `A and C`, `A or B`, `A - C` |
| `not B but D`, `D rather than B` | `C or D is correct`, `I doubt that D is true`, `If D is true`, `Assertion D` |

Of an answer that goes through the choices (`A) 3`, then `B) 4` on a later line) the opening letter is none; behind
colons (`A: 3`, `B: 4`) it is.
"""

import re
import unicodedata
from collections import deque
from collections.abc import Iterator, Sequence

from ttrl_pop.thoughts import Thinking
from ttrl_pop.types import FinishReason
from ttrl_pop.vote.extract.chat import marked_answers
from ttrl_pop.vote.extract.remarks import DONE
from ttrl_pop.vote.extract.turn import said
from ttrl_pop.words import (
    AND,
    ANSWER,
    CHOICE,
    CLAIM,
    CONSEQUENCE,
    CORRECT,
    DOUBT,
    IS_WORD,
    JOIN,
    NAMED,
    NEVER,
    PICK,
    RATHER,
    REASON,
    SURELY,
    VERDICT,
    WORD_END,
    WRONG,
    any_of,
    lines_with,
    words_of,
)

LONGEST = 300
"""Characters of an answer that are read: its letter stands at its beginning."""
MOST_SAID = 10
"""Times that a line may say what the answer is, from the last one, of which one must name a letter."""
MOST_CLAIMS = 100
"""Claims of one sentence that a choice is right, of which the last are looked at."""

_COMMAND = r"\\(?:text(?:bf|it|rm|sf|tt|sc)?|math(?:rm|bf|it|sf|tt)|[mhf]box|boxed|fbox)\s*+\{"
_OPEN = rf"""(?:[\s*_`$({{\[<"'“‘「【{DONE}]|{_COMMAND})*+"""
_NO_WIDTH = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_LAYOUT = re.compile(r"~|\\[ ,;:!]|\\(?:quad|qquad|left|right)(?![a-zA-Z])")
# `Option`, `The answer is`, `Answer:`. No letter of a Latin word is the choice.
_LEAD = rf"""(?P<lead> (?: {_OPEN}
    (?: {NAMED} | (?:the\s++)?+ (?:(?:correct|right|best|final)\s++)?+ (?:{any_of(CHOICE)}) ) {WORD_END}
    [\s*_]*+ (?:{IS_WORD})?+ [\s*_]*+ [:：]?+ ){{0,3}} )"""
_LETTER = re.compile(
    rf"""{_LEAD} {_OPEN} (?P<letter>[A-Za-z]) (?![\w'^+#]|[-/&–][A-Za-z]) (?P<closed>[*_`$}}"'”’」】>]*+)
    (?P<mark>(?:\s*+[)\].:])?+) (?P<rest>.*)""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_NOTHING = re.compile(rf"""[\s*_`$)}}\]>"'”’」】.,:。!{DONE}]*+""")
# `, B`, `and (C)`, `}/\text{D}`, or a capital alone behind the first one.
_ANOTHER = re.compile(
    rf"""[)\]] \s*+ [(\[] [A-Za-z] [)\]]
      | [\s*_`$)}}\].:]*+
        (?: [,/&+、] | ;(?=[\s(]*+[A-Za-z][\s).]*+(?:\Z|[,;])) | (?:{_COMMAND}\s*+)?+ (?:{any_of(AND)})(?!\w) [\s}}]*+ )
        {_OPEN} (?: (?:{any_of(AND, CHOICE)}) \s++ )?+ {_OPEN} [A-Za-z] (?![\w'])
      | [\s*_`$)}}\].:]*+ {_OPEN} (?-i:[A-J]) {_NOTHING.pattern} \Z""",
    re.VERBOSE | re.IGNORECASE,
)
_DENIED = re.compile(rf"[\s)\]*_]*+(?:{any_of(WRONG)})(?![a-z])", re.IGNORECASE)
_REMARK = re.compile(
    rf"""[)\].]*+ (?: [,;]?+ \s*+ (?:{any_of(REASON, RATHER)}|not|so|is\s(?:{any_of(CORRECT)}))(?![a-z])
      | ; \s | \s*+ [–—] \s*+ (?:{any_of(REASON)})(?![a-z]) | \s++ [-–—]{{1,2}} \s++ (?![A-Za-z](?!\w))
      | \s [:：] \s | \s \( (?!\s*+(?:{any_of(AND)})(?!\w)) [^()]*+ \) {_NOTHING.pattern} \Z )""",
    re.VERBOSE | re.IGNORECASE,
)
_SAID = (
    (
        words_of(ANSWER, CHOICE),
        re.compile(
            rf"""(?<![A-Za-z]) (?:{any_of(ANSWER, CHOICE)}) [ \t*_]*+
            (?: {IS_WORD} [ \t]*+ [:：]?+ | [:：] )""",
            re.VERBOSE | re.IGNORECASE,
        ),
    ),
    (
        PICK,
        re.compile(
            rf"(?<![A-Za-z])(?P<never>(?:{any_of(NEVER)}|[a-z]+n['’]t)\s*+)?+(?:{any_of(PICK)}){WORD_END}[:：]?+",
            re.IGNORECASE,
        ),
    ),
)
_SO = re.compile(
    rf"""(?<![A-Za-z]) (?:{any_of(CONSEQUENCE)}) [\s,，]*+
    (?: (?:it\s(?:is|must\sbe)|it['’]s) \s++ (?:the\s++)?+ | (?=(?:the\s++)?+(?:{any_of(CHOICE)})) )""",
    re.VERBOSE | re.IGNORECASE,
)
_NOT_BUT = re.compile(
    rf"""[\s*_]*+ not \s++ {_OPEN} (?:(?:{any_of(CHOICE)}) \s++ {_OPEN})?+ [A-Z] [^\w,;.]*+ ,?+ \s*+
    but \s++ (?:rather\s++)?+""",
    re.VERBOSE | re.IGNORECASE,
)
_TAKEN = re.compile(
    rf"""(?<![\w'(\[*]) [(\[*]*+ (?P<letter>[A-J]) [)\]*.]*+ \s++ is \s++ (?:(?:{any_of(SURELY)})\s++)?+
    (?P<verdict>{any_of(CORRECT)})(?!\w)""",
    re.VERBOSE,
)
_SENTENCE_ENDS = re.compile(r"[.!?;。！？；](?=\s)(?<!\b[A-Z]\.)")
_CLAUSE = re.compile(rf"[,，:：—–]|(?<!\w)(?:{any_of(CONSEQUENCE, JOIN)})(?!\w)", re.IGNORECASE)
_DOUBTED = re.compile(rf"(?<!\w)(?:{any_of(DOUBT)}|[a-z]+n['’]t)(?!\w)", re.IGNORECASE)
# `C or D is correct`, `Assertion D is true`
_NOT_ALONE = re.compile(
    rf"""(?:^|[\s(])[(\[*]*+[A-J][)\]*.]*+[\s,]++(?:(?:{any_of(AND)})\s++)?+ \Z | (?:{any_of(CLAIM)})\s++\Z""",
    re.VERBOSE | re.IGNORECASE,
)
_OTHER_VERDICT = re.compile(rf"(?<!\w)[A-Z]{{1,3}}\)?\s++is\s++(?:not\s++)?+(?:{any_of(VERDICT)})(?!\w)")


def extract_choice(text: str, finish_reason: FinishReason, thinking: Thinking = False) -> str | None:
    """The letter of a multiple-choice answer: in a mark, behind the last `answer is`, in `(D) is correct`, alone on the
    last line, or opening the text. A letter of a sentence is none."""
    turn = said(_NO_WIDTH.sub("", text), finish_reason, thinking)
    if turn is None:
        return None
    for answer in marked_answers(turn):
        if found := answer.upper() if len(answer) == 1 and answer.isalpha() else _letter(answer, is_named=True):
            return unicodedata.normalize("NFKC", found)
    return next(_told(turn.finished_lines.strip()), None)


def _told(text: str) -> Iterator[str]:
    """Letters that sentences tell, the surest first."""
    lines = text.split("\n")
    for words, pattern in _SAID:
        for index in lines_with(words, lines):
            if said := deque(pattern.finditer(lines[index]), maxlen=MOST_SAID):
                marks = (mark for mark in reversed(said) if not mark.groupdict().get("never"))
                rests = (lines[index][mark.end() : mark.end() + LONGEST] for mark in marks)
                yield from filter(None, (_letter(rest, is_named=True) for rest in rests))
                break
    for index in lines_with(CONSEQUENCE, lines):
        if said := deque(_SO.finditer(lines[index]), maxlen=1):
            yield from filter(None, [_letter(lines[index][said[0].end() :][:LONGEST], is_named=True)])
            break
    claims = (_taken(lines[index]) for index in lines_with(CORRECT, lines))
    taken = next(filter(None, claims), set())
    if len(taken) == 1:
        yield taken.pop()
    alone = _LETTER.match(lines[-1])
    if alone and alone["letter"].isupper() and _NOTHING.fullmatch(alone["rest"]):
        yield alone["letter"]
    if (found := _letter(lines[0], is_named=False)) and not _is_list(lines):
        yield found


def _taken(line: str) -> set[str]:
    """Letters of which a line says that they are right, and does not take it back in the sentence."""
    taken, start = set(), 0
    ends = [*(end.end() for end in _SENTENCE_ENDS.finditer(line)), len(line)]
    for end in ends:
        for claim in deque(_TAKEN.finditer(line, start, end), maxlen=MOST_CLAIMS):
            before = line[max(start, claim.start() - LONGEST) : claim.start()]
            behind = line[claim.end() : min(end, claim.end() + LONGEST)]
            is_one_of_several = claim["verdict"] == "true" and _OTHER_VERDICT.search(behind)
            clause = _CLAUSE.split(before)[-1]
            if not (is_one_of_several or _DOUBTED.search(clause) or _NOT_ALONE.search(before)):
                taken.add(claim["letter"])
        start = end
    return taken


def _is_list(lines: Sequence[str]) -> bool:
    """Whether a later line opens as the first does, with the next letter."""
    first = _LETTER.match(lines[0])
    if first is None:
        return False
    before, letter, mark = first.string[: first.start("letter")], first["letter"], first["closed"] + first["mark"]
    opening = before + chr(ord(letter) + 1) + mark
    is_marked = bool(first["lead"] or mark.strip("*_: "))
    return is_marked and any(line.strip().casefold().startswith(opening.casefold()) for line in lines[1:])


def _letter(text: str, is_named: bool) -> str | None:
    """The choice that a text begins with.

    Args:
        is_named: a mark or a word before it says that it is the answer: no article and no number of a list.
    """
    text = _LAYOUT.sub(" ", unicodedata.normalize("NFKC", text[:LONGEST]))
    text = _NOT_BUT.sub("", text, count=1) if is_named and _NOT_BUT.match(text) else text
    found = _LETTER.match(text)
    if found is None:
        return None
    letter, rest, is_named = found["letter"], found["rest"], is_named or found["lead"] != ""
    if _NOTHING.fullmatch(rest):
        return letter.upper()
    behind = text[found.end("closed") :]
    if _ANOTHER.match(behind) or _DENIED.match(behind):
        return None
    if found["mark"] == "" and "}" in found["closed"] and is_named:
        # `\textbf{D} 42`
        return letter.upper()
    if found["mark"] and (letter.isupper() or (is_named and (rest[:1].isspace() or found["mark"] == ")"))):
        return letter.upper()
    return letter.upper() if is_named and letter != "I" and _REMARK.match(behind) else None
