r"""Equality of short answers by canonical key alone: no algebra, no `eval`, no recursion.

Numbers become exact fractions, so `0.50`, `\frac12`, `\dfrac{1}{2}` and `$1/2$` share a key. Tuples, intervals
and sets are keyed element by element, brackets kept. Words are casefolded; single letters and formulas keep
their case.

Simplifications, against a grader that understands mathematics:

1. Formulas are compared as text without spaces: `x+1` is not `1+x`. A symbolic grader can add that in `equal`.
2. Units, percent and degree signs after a number are dropped, not converted: `50\%`, `50 cm` and `50` are
   equal. After a lone number any `\text{}` counts as a unit, in a list the known ones do.
3. `1,234` is a number, but inside brackets a comma separates: `(1,234)` is a pair. Where the three digits begin
   with 0 (`(1,000)`) it is a thousands separator there too.
4. An answer longer than `MAX_LENGTH` or a power of ten beyond `MAX_EXPONENT` is compared as text.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass, field
from fractions import Fraction

from ttrl_pop.vote.graders.base import Grader

MAX_LENGTH = 1000
"""Longest answer that is read, in characters; no run of digits then reaches the length that Python's `int` refuses."""
MAX_EXPONENT = 1000
"""Farthest power of ten that becomes a number."""

_UNIT = r"""(?: [mcdkn]m | in(?:ch(?:es)?)? | f(?:oo|ee)?t | y(?:ar)?ds? | mi(?:les?)? | units? | points?
    | (?:centi|milli|kilo)?met(?:er|re)s? | sec(?:ond)?s? | min(?:ute)?s? | h(?:ou)?rs? | days? | weeks? | months?
    | years? | [mk]g | (?:kilo)?grams? | lbs? | pounds? | oz | ounces? | tons? | ml | lit(?:er|re)s? | gallons? | cups?
    | dollars? | cents? | deg(?:ree)?s? | rad(?:ian)?s? | percent | mph | hz | watts? | joules? | newtons? | volts? )"""
_SHORT_UNITS = "msghLNVWJK"
_NO_UNIT = re.compile(
    r"\b(?:hundred|thousand|million|billion|trillion|dozen|[ap]\.?m|and|or|mod|base|pi|st|nd|rd|th)\b", re.IGNORECASE
)
_SYMBOLS = {
    "−": "-",
    "–": "-",
    "×": r"\times ",
    "·": r"\cdot ",
    "∞": r"\infty ",
    "π": r"\pi ",
    "°": r"^\circ ",
    "’": "'",
}
_OPENERS = {"(": (")", "]"), "[": (")", "]"), "{": ("}",), r"\{": (r"\}",)}

_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
# `\\` comes first so that the `\\[2pt]` of a matrix is not taken for a delimiter.
_DELIMITERS = re.compile(r"(\\\\)|\\[()\[\]$]|\$")
_SIZES = re.compile(r"\\(?:left|right)(?![a-zA-Z])(?:\s*\.)?|\\[bB]igg?[lr]?(?![a-zA-Z])")
_JOINED = re.compile(r"\\!\s*|(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))")
_SPACES = re.compile(r"(?<!\\)\\[,;: ]|~|\\(?:quad|qquad|displaystyle)(?![a-zA-Z])")
_FRACS = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_BARE_ARGUMENT = re.compile(r"\\(frac|sqrt)\s*([0-9])")
_BARE_DENOMINATOR = re.compile(r"\\frac\s*(\{[^{}]*\})\s*([0-9])")
# None of the above is in a text without one of these.
_LAID_OUT = re.compile(r"[\\$~]|\{,")
_TEXT_COMMAND = r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:bf|it|rm|sf)|[mhf]box|boxed)\s*\{"
_BRACES = re.compile(rf"({_TEXT_COMMAND})|\\[{{}}]|[{{}}]")
_ASSIGNED = re.compile(r"\s*[A-Za-z]\s*=([^=]*)")
_BRACKETS = re.compile(r"\\[{}]|[()\[\]{}]|,(?!0[0-9]{2}(?![0-9]))")

_DECIMAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
_FRAC = re.compile(r"\\frac\{\s*([^{}\s]+)\s*\}\{\s*([^{}\s]+)\s*\}")
_NUMBER = re.compile(
    rf"""(?P<sign>[-+]?)\s*
    (?: (?P<whole>[0-9]+)\s+(?P<part>[0-9]+)\s*/\s*(?P<of>[0-9]+)
      | (?P<num>[-+]?{_DECIMAL})\s*/\s*(?P<den>[-+]?{_DECIMAL})
      | (?P<mantissa>[-+]?{_DECIMAL})
        (?:(?:e|\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*)(?P<brace>\{{\s*)?(?P<exp>[-+]?[0-9]{{1,4}})(?(brace)\s*\}})
        (?![0-9]))?
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_POWER = r"(?:\s*\^\s*\{?\s*[23]\s*\}?)?"
_SUFFIX = re.compile(
    rf"""\^\s*\{{?\s*\\circ\s*\}}?\s*[CF]? | \\degree | %
    | (?:(?:square|cubic|sq\.?|cu\.?)\s*)?{_UNIT}{_POWER}(?:\s*(?:per\s+|/\s*)(?:{_UNIT}|[hs]){_POWER})?""",
    re.VERBOSE | re.IGNORECASE,
)
_TEXT_UNIT = re.compile(rf"{_TEXT_COMMAND}([^{{}}]*)\}}{_POWER}")
_LETTER = r"[^\W\d_]"
_WORDS = re.compile(rf"(?=.*{_LETTER}{{2}}){_LETTER}+(?:(?:\.? |[-']){_LETTER}+)*")
# A space between two letters or two digits separates; any other is layout.
_LAYOUT = re.compile(rf"(?<![^\W_]) | (?![^\W_])|(?<=[0-9]) (?={_LETTER})")


class ExactGrader(Grader):
    """Answers are equal if their canonical keys are. The key of a number is its fraction in lowest terms."""

    def key(self, answer: str) -> str:
        answer = answer.strip()
        if len(answer) > MAX_LENGTH:
            text = " ".join(answer.split())
            # surrogatepass: JSON may carry half a surrogate pair, which plain UTF-8 refuses.
            return "#" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        text = clean(answer)
        if assigned := _ASSIGNED.fullmatch(text):
            text = assigned[1]
        number = quantity(text)  # before `\text{}` goes: any word in one is a unit
        return str(number) if number is not None else _structured(trim(unwrapped(text)))


def clean(answer: str) -> str:
    r"""Drop what only lays out: `$`, `\left`, spaces, the final period; give `\frac` and `\sqrt` braces."""
    text = answer if answer.isascii() else _plain_characters(answer)
    if _LAID_OUT.search(text):
        text = _DELIMITERS.sub(r"\1", text)
        text = _SIZES.sub("", text)
        text = _JOINED.sub("", text)
        text = _SPACES.sub(" ", text).replace("{,}", ",").replace(r"\%", "%")
        text = _FRACS.sub(r"\\frac", text)
        text = _BARE_ARGUMENT.sub(r"\\\1{\2}", text)
        text = _BARE_DENOMINATOR.sub(r"\\frac\1{\2}", text)
    return trim(text)


def trim(text: str) -> str:
    """A text without the spaces around it and the marks that end a sentence."""
    return text.strip().rstrip(".,; \n")


def unwrapped(text: str) -> str:
    r"""`\text{...}` and its relatives without the command and its braces, at any depth."""
    pieces: list[str] = []
    wrappers: list[bool] = []
    read = 0
    for token in _BRACES.finditer(text):
        mark = token[0]
        pieces.append(text[read : token.start()])
        read = token.end()
        if mark == "}":
            dropped = wrappers.pop() if wrappers else False
        else:
            dropped = token[1] is not None
            if dropped or mark == "{":
                wrappers.append(dropped)
        if not dropped:
            pieces.append(mark)
    return "".join(pieces) + text[read:]


def quantity(text: str) -> Fraction | None:
    """The number that `text` is, with or without a unit after it; None if it is something else."""
    text = (_FRAC.sub(r" \1/\2 ", text) if "\\" in text else text).strip()
    match = _NUMBER.match(text)
    if match is None or not is_unit(text[match.end() :].strip()):
        return None
    number = _value(match)
    return -number if number is not None and match["sign"] == "-" else number


def is_unit(rest: str) -> bool:
    """Whether what follows a number is a unit, a percent or a degree sign, or nothing."""
    if not rest or _SUFFIX.fullmatch(rest):
        return True
    in_text = _TEXT_UNIT.fullmatch(rest)
    if in_text is None:
        return False
    unit = in_text[1].strip()
    # One letter may be a factor (`5\mathrm{i}`), some words are (`\text{ million}`).
    return unit in _SHORT_UNITS if len(unit) < 2 else not _NO_UNIT.search(unit)


def _plain_characters(text: str) -> str:
    """A text in NFKC where that keeps its meaning. Applied blindly it would read `10²` as 102 and `1½` as 11/2."""
    text = _SUPERSCRIPTS.sub(lambda run: "^{" + unicodedata.normalize("NFKC", run[0]) + "}", text)
    return "".join(_plain_character(c) for c in unicodedata.normalize("NFC", text))


def _plain_character(c: str) -> str:
    if c.isascii():
        return c
    if c in _SYMBOLS:
        return _SYMBOLS[c]
    if c.isspace():
        return " "
    if c.isdecimal():
        return str(unicodedata.decimal(c))
    if unicodedata.category(c) == "Cf":  # zero-width
        return ""
    tag = unicodedata.decomposition(c).partition(" ")[0]
    if tag == "<fraction>":
        above, _, below = unicodedata.normalize("NFKC", c).partition("⁄")
        return rf"\frac{{{above}}}{{{below}}}"
    return unicodedata.normalize("NFKC", c) if tag in ("<wide>", "<narrow>", "<font>") else c


def _value(match: re.Match[str]) -> Fraction | None:
    """Value of a match of `_NUMBER` without its sign; None for a zero denominator or a far exponent."""
    if match["whole"]:
        of = int(match["of"])
        return int(match["whole"]) + Fraction(int(match["part"]), of) if of else None
    if match["num"]:
        den = _decimal(match["den"])
        return _decimal(match["num"]) / den if den else None
    if not match["exp"]:
        return _decimal(match["mantissa"])
    exponent = int(match["exp"])
    return _decimal(match["mantissa"]) * Fraction(10) ** exponent if abs(exponent) <= MAX_EXPONENT else None


def _decimal(text: str) -> Fraction:
    whole, _, decimals = text.replace(",", "").partition(".")
    return Fraction(int(whole + decimals), 10 ** len(decimals)) if decimals else Fraction(int(whole))


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
    elements: list[str] = field(default_factory=list)

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
            self.elements.append(str(number))
        elif len(self.parts) == 1:
            self.elements.append(_text_key(self.parts[0][0]))
        else:
            self.elements.append(_text_key("".join(among for _, among in self.parts)))
        self.parts, self.element = [], end

    def close(self, text: str, start: int, end: int) -> tuple[str, str]:
        """The key of this bracket alone, and among other text."""
        closer = text[start:end]
        self.end_element(text, start, end)
        number = quantity(text[self.begin : start]) if self.opener == "{" else None
        elements = self.elements if number is None else [str(number)]
        elements = [] if elements == [""] else elements
        listed = self.opener + ",".join(elements) + closer
        as_set = r"\{" + ",".join(sorted(set(elements))) + r"\}"
        if self.opener == r"\{":
            return as_set, as_set
        if len(elements) == 1 and listed[0] + listed[-1] in ("()", "{}"):
            return elements[0], listed
        return (as_set if self.opener == "{" else listed), listed


def _structured(text: str) -> str:
    """Key of nested tuples, intervals, sets and lists, inside out; unbalanced text is a formula like others."""
    number = quantity(text)
    if number is not None:
        return str(number)
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
    return ",".join(top.elements)


def _text_key(text: str) -> str:
    """The key of what is no number: words casefolded, anything else without layout spaces."""
    text = " ".join(trim(text).split())
    return text.casefold() if _WORDS.fullmatch(text) else _LAYOUT.sub("", text)
