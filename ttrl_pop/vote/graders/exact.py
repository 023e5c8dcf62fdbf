r"""Equality of short answers by canonical key alone: no algebra, no `eval`, no recursion.

Numbers become exact fractions, so `0.50`, `\frac12`, `\dfrac{1}{2}` and `$1/2$` share a key. Tuples, intervals
and sets are keyed element by element, brackets kept. Words are casefolded; letters, symbols and formulas keep their
case. What is one spelling, a number, a unit, a label or a word is said in `spelling`, `quantities`, `units`, `labels`
and `casing`.

Simplifications, against a grader that understands mathematics:

1. Formulas are compared as text without spaces: `x+1` is not `1+x`. A symbolic grader can add that in `equal`.
2. Units, percent and degree signs after a number are dropped, not converted: `50\%`, `50 cm` and `50` are equal, so
   `5 m` is `5 km`. In a list they count where its numbers have different ones, or some have none: they say what
   belongs to which.
3. `1,234` is a number, but inside brackets a comma separates: `(1,234)` is a pair. Where the three digits begin
   with 0 (`(1,000)`) it is a thousands separator there too.
4. Dates, spans, scores, ratios and times of day are text: digits with `-`, `:` or two `/` between are not computed.
5. An answer longer than `MAX_LENGTH` is compared as text.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from ttrl_pop.vote.graders.base import Grader
from ttrl_pop.vote.graders.casing import folded
from ttrl_pop.vote.graders.labels import behind_label
from ttrl_pop.vote.graders.quantities import quantity, tell_apart
from ttrl_pop.vote.graders.spelling import clean, trim, unquoted, unwrapped

MAX_LENGTH = 1000
"""Longest answer that is read, in characters; no run of digits then reaches the length that Python's `int` refuses."""

_OPENERS = {"(": (")", "]"), "[": (")", "]"), "{": ("}",), r"\{": (r"\}",)}
_BRACKETS = re.compile(r"\\[{}]|[()\[\]{}]|,(?!0[0-9]{2}(?![0-9]))")
_INTEGER = re.compile(r"-?[1-9][0-9]{0,99}")
_THREE_DIGITS = re.compile(r"(?<![0-9.,])([0-9]{1,3}),([0-9]{3})(?![0-9.,])")
_LETTER = r"[^\W\d_]"
_WORDS = re.compile(rf"(?=.*{_LETTER}{{2}}){_LETTER}+(?:(?:\.? |[-']){_LETTER}+)*")
# A space between two letters or two digits separates; any other is layout, as it is between a command and a digit.
_LAYOUT = re.compile(rf"(?<![^\W_]) | (?![^\W_])|(?<=[0-9]) (?={_LETTER})")
_BEHIND_COMMAND = re.compile(r"(\\[a-zA-Z]+) (?=[0-9])")

_TIME = re.compile(r"(?<![0-9:.])0(?=[0-9]:[0-9]{2}(?![0-9]))")
_TIME_OF_DAY = re.compile(r"0?([0-9]{1,2})(:[0-9]{2}(?::[0-9]{2})?)?\s*([ap])\.?\s?m\.?", re.IGNORECASE)
_BASE_NAMES = """
2 two binary 0b
3 three
4 four
5 five
6 six
7 seven
8 eight octal 0o
9 nine
10 ten decimal
11 eleven
12 twelve
16 sixteen hexadecimal hex 0x
"""
"""Bases with their names, in words and in the prefixes of programs."""
_BASES = {name: line.split()[0] for line in _BASE_NAMES.strip().splitlines() for name in line.split()[1:]}
_BASE = "|".join((*sorted(_BASES, key=len, reverse=True), "[0-9]{1,2}"))
_IN_BASE = re.compile(
    rf"""(?P<prefix>0[xob])(?P<prefixed>[0-9a-f]+)
    | (?P<open>\()?\s*(?P<digits>[0-9a-z]+(?:\.[0-9a-z]+)?)\s*(?(open)\))\s*
      (?: _\s*\{{?\s*\(?\s*(?:base[\s-]*)?(?P<index>{_BASE})\s*\)?\s*\}}?
        | \(?\s*(?:in\s+)?base[\s-]*(?P<base>{_BASE})\s*\)?
        | \(?\s*in\s+(?P<system>binary|octal|hexadecimal|hex)\s*\)? )""",
    re.VERBOSE | re.IGNORECASE,
)
_MAYBE_IN_BASE = re.compile(r"_|^0[xobXOB]|[bB]ase| in ")
_QUOTES = frozenset("'\"`")


class ExactGrader(Grader):
    """Answers are equal if their canonical keys are. The key of a number is its fraction in lowest terms."""

    def key(self, answer: str) -> str:
        answer = answer.strip()
        if _INTEGER.fullmatch(answer):
            return answer
        if len(answer) > MAX_LENGTH:
            text = " ".join(answer.split())
            # surrogatepass: JSON may carry half a surrogate pair, which plain UTF-8 refuses.
            return "#" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        text = clean(answer)
        if "=" in text and (behind := behind_label(text)) is not None:
            text = behind
        number = quantity(text)  # before `\text{}` goes: a noun in one is a unit
        return str(number[0]) if number is not None else _structured(trim(unwrapped(text)))

    def doubt(self, answers: Iterable[str | None]) -> str | None:
        spellings = sorted({answer for answer in answers if answer and len(answer) <= MAX_LENGTH})
        return self._doubt_about_commas(spellings) or _doubt_about_units(spellings)

    def _doubt_about_commas(self, spellings: Sequence[str]) -> str | None:
        """What to tell where commas before three digits, were they decimal ones, would make other votes of these."""
        first = next(filter(_THREE_DIGITS.search, spellings), None)
        if first is None:
            return None
        here = [self.key(spelling) for spelling in spellings]
        elsewhere = [self.key(_THREE_DIGITS.sub(r"\1.\2", spelling)) for spelling in spellings]
        if len({*here}) == len({*elsewhere}) == len({*zip(here, elsewhere, strict=True)}):
            return None
        return f"{first} counts as {self.key(first)}, as a comma before three digits parts thousands"


def _doubt_about_units(spellings: Sequence[str]) -> str | None:
    """What to tell where one number stands with two units, which are dropped."""
    seen: dict[Fraction, tuple[str, str]] = {}
    for spelling in spellings:
        if not spelling.isdecimal() and (found := quantity(clean(spelling))) and found[1]:
            other, unit = seen.setdefault(found[0], (spelling, found[1]))
            if unit != found[1]:
                return f"{other} and {spelling} count as one answer, as units are dropped"
    return None


@dataclass(slots=True)
class _Frame:
    """An open bracket while `_structured` reads on: the elements that it holds so far."""

    opener: str
    begin: int
    """Where its content begins."""
    element: int
    """Where the element being read begins."""
    read: int
    """Where the text not yet in `parts` begins."""
    parts: list[tuple[str, str]] = field(default_factory=list)
    """Text and closed brackets of the element being read, each as (key if alone, key among others)."""
    elements: list[tuple[str, str, str]] = field(default_factory=list)
    """Key of each element, its key inside a formula, and its unit."""

    def end_text(self, text: str, start: int, end: int) -> None:
        """Take the text before the mark at `start:end` into the element and read on behind the mark."""
        piece = text[self.read : start]
        if piece.strip():
            self.parts.append((piece, piece))
        self.read = end

    def end_element(self, text: str, start: int, end: int) -> None:
        """Key the element that the mark at `start:end` ends, and begin the next."""
        self.end_text(text, start, end)
        number = quantity(text[self.element : start])
        if number is not None:
            self.elements.append((str(number[0]), str(number[0]), number[1]))
        else:
            alone, among = self.parts[0] if len(self.parts) == 1 else ("".join(among for _, among in self.parts),) * 2
            self.elements.append((_text_key(alone), _text_key(among, in_formula=True), ""))
        self.parts, self.element = [], end

    def keys(self, in_formula: bool = False) -> list[str]:
        """Keys of the elements; units count where they tell them apart."""
        count = tell_apart([unit for *_, unit in self.elements])
        return [
            f"{among if in_formula else alone} {unit}" if count and unit else (among if in_formula else alone)
            for alone, among, unit in self.elements
        ]

    def close(self, text: str, start: int, end: int) -> tuple[str, str]:
        """The key of this bracket alone, and among other text."""
        closer = text[start:end]
        self.end_element(text, start, end)
        number = quantity(text[self.begin : start]) if self.opener == "{" else None
        elements, inside = (self.keys(), self.keys(in_formula=True)) if number is None else ([str(number[0])],) * 2
        elements, inside = ([] if keys == [""] else keys for keys in (elements, inside))
        listed, among = (self.opener + ",".join(keys) + closer for keys in (elements, inside))
        if self.opener == r"\{":
            return _as_set(elements), _as_set(inside)
        if len(elements) == 1 and listed[0] + listed[-1] in ("()", "{}"):
            return elements[0], among
        return (_as_set(elements) if self.opener == "{" else listed), among


def _as_set(elements: Sequence[str]) -> str:
    return r"\{" + ",".join(sorted(set(elements))) + r"\}"


def _structured(text: str) -> str:
    """Key of nested tuples, intervals, sets and lists, inside out; unbalanced text is a formula like others."""
    number = quantity(text)
    if number is not None:
        return str(number[0])
    top = _Frame("", 0, 0, 0)
    frames = [top]
    for token in _BRACKETS.finditer(text):
        frame, mark, span = frames[-1], token[0], token.span()
        if mark == ",":
            frame.end_element(text, *span)
        elif mark in _OPENERS:
            frame.end_text(text, *span)
            frames.append(_Frame(mark, span[1], span[1], span[1]))
        elif frame is not top and mark in _OPENERS[frame.opener]:
            frames.pop()
            frames[-1].parts.append(frame.close(text, *span))
            frames[-1].read = span[1]
        else:
            return _text_key(text)
    if frames[-1] is not top:
        return _text_key(text)
    top.end_element(text, len(text), len(text))
    return ",".join(top.keys())


def _text_key(text: str, in_formula: bool = False) -> str:
    """The key of what is no number: words casefolded, but inside a formula, and anything else without layout spaces."""
    text = " ".join(trim(text).split())
    if text[:1] in _QUOTES:
        text = unquoted(text)
    if _WORDS.fullmatch(text):
        return text if in_formula else folded(text)
    if text[:1].isdigit() and (time := _TIME_OF_DAY.fullmatch(text)):
        return f"{time[1]}{time[2] or ':00'} {time[3].lower()}m"
    if _MAYBE_IN_BASE.search(text) and (match := _IN_BASE.fullmatch(text)) and (number := _in_base(match)):
        return number
    if ":" in text:
        text = _TIME.sub("", text)
    if "\\" in text:
        text = _BEHIND_COMMAND.sub(r"\1", text)
    return _LAYOUT.sub("", text)


def _in_base(match: re.Match[str]) -> str | None:
    """A number of another base in one spelling; None where the digits are not of that base, or a variable's name."""
    digits = (match["prefixed"] or match["digits"]).upper()
    name = (match["prefix"] or match["index"] or match["base"] or match["system"]).lower()
    base = int(_BASES.get(name, name))
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits.replace(".", "")):
        return None
    if match["digits"] and digits.isalpha() and (base != 16 or match["digits"] in {*"abcdef"}):
        return None
    return str(int(digits)) if base == 10 and digits.isdecimal() else f"{digits}_{{{base}}}"
