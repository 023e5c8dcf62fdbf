r"""Numbers in a text, each whole: `-1,234.5`, `1 234 567`, `1/2`, `1 1/2`, `½`, `\frac{3}{4}`, `1.5e3`, `3.2 × 10^5`.

What a number is:

1. Digits of any script. Beside a letter of a script without capitals they are a number (`共72元`); behind one that can
   be a capital they belong to a word (`x2`, `GPT4`, `v1.2`).
2. All that belongs to it is in it: sign (`-$5` is `-5`), thousands, decimals, exponent, base, fraction, roots,
   multiples of pi, and a word of `MAGNITUDES`.
3. Dates, times, ratios (`2024-05-17`, `3:30`), versions (`1.2.3`), indices and exponents of something else (`x_1`,
   `cm^2`), binomials and fractions of letters are no numbers, and no part of them is one.
4. A comma makes thousands before groups of three digits (in India before the last of at most ten), else it separates:
   `1,234` is one number, `3,14` are two. A single space before groups of three makes thousands too, and a comma behind
   them decimals. A slash between spaces divides: `6 / 2` are two numbers.

The pattern reads every character a bounded number of times.
"""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from ttrl_pop.thoughts import Thinking
from ttrl_pop.types import FinishReason
from ttrl_pop.vote.extract.turn import said

MAGNITUDES = (
    *("hundred", "thousand", "million", "billion", "trillion", "lakh", "crore", "dozen"),
    *("万亿", "万", "亿", "萬", "億", "만", "억"),
)
"""Words behind a number that multiply it."""
CURRENCIES = "$€£¥₹₩"
"""Signs that may stand between a number's sign and its digits."""
COPULAS = "是为為得于於は"
"""Letters that join nothing to a number behind them, so that a dash after one is the number's sign."""

_CASED = "A-Za-zÀ-ÖØ-öø-֏Ḁ-῿Ａ-Ｚａ-ｚ"
"""Letters that are or can be a capital: Latin, Greek, Cyrillic, Armenian."""
_SPACE = "[ \u00a0\u202f\u2009]"
_MINUS = "[-+−]"
_TIMES = r"(?:[×xX*·⋅✕]|\\times(?![a-zA-Z])|\\cdot(?![a-zA-Z]))"
_VULGAR = "[¼-¾⅐-⅞↉]"

# 1,234,567  12,34,567  1\,234  1{,}234  1 234  1'234  1 234,56  1_234  ١٬٢٣٤  1.234.567  1.234,56
_THOUSANDS = rf"""(?: (?!0) \d{{1,3}}
    (?: (?: , \d{{3}} (?!\d) )++ | (?: , \d{{2}} (?!\d) ){{1,9}}+ , \d{{3}} (?!\d)
      | (?: (?<=[０-９]) ， [０-９]{{3}} (?!\d) )++
      | (?: (?: \\[,\ ] | \{{,\}} | ['’_٬] ) \d{{3}} (?!\d) )++
      | (?: {_SPACE} \d{{3}} (?!\d) )++ (?: , \d{{1,2}} (?!\d) )?+
      | (?: \. \d{{3}} (?!\d) ){{2,}}+ (?: , \d++ )?+ | (?: \. \d{{3}} (?!\d) )++ , \d{{1,2}} (?!\d) ) )"""
_REPEATED = r"\\(?:overline|bar|dot)(?![a-zA-Z]) \s?+ (?: \{ \d++ \} | \d )"
_DECIMAL = rf"(?: (?: {_THOUSANDS} | \d++ ) (?: [.٫．] \d*+ {_REPEATED} | [.٫．] \d++ )?+ | (?<![\w)\]}}]) \. \d++ )"
_BASE = r"_ (?: \{ \d{1,2} \} | \d{1,2} (?![\d_]) ) | [₀-₉]{1,2}"
_PREFIXED = "0 (?: [xX] (?: [0-9a-fA-F]{2,}+ | [a-fA-F] ) | [bB] [01]++ | [oO] [0-7]++ ) (?![0-9a-zA-Z_])"
_EXPONENT = rf"""(?: (?: \^ | \*\* ) \ ?+ (?: \{{ \ ?+ {_MINUS}? \d++ (?: [./] \d++ )?+ \ ?+ \}}
      | \( {_MINUS}? \d++ \) | {_MINUS}? \d++ )
    | [⁺⁻]?+ [⁰¹²³⁴⁵⁶⁷⁸⁹]++ | <sup> {_MINUS}? \d++ </sup> )"""
_FACTOR = rf"""(?: \\sqrt (?:\[\d++\])?+ (?: \{{\d++\}} | \ ?+\d ) | √ (?: \d++ | [{{(]\d++[)}}] )
    | \\pi (?![a-zA-Z]) | π (?![{_CASED}]) )"""
_PART = r"\{ (?: [-+\d\s.,π√] | \{,\} | \\pi(?![a-zA-Z]) | \\sqrt\{\d++\} )++ \}"
_FRAC = rf"\\[dtc]?frac \ ?+ (?: {_PART} \ ?+ (?: {_PART} | \d ) | \d \ ?+ (?: {_PART} | \d ) )"
_SIZE = rf"""(?: {_PREFIXED} | (?: \d++ \  \d++ [/⁄] \d++ | (?: \d++ \ ?+ )?+ {_VULGAR} | (?: \d++ \ ?+ )?+ {_FRAC}
      | {_DECIMAL}
        (?: [/⁄] \d++ (?: \. \d++ )?+ | [eE] {_MINUS}? \d++ (?![{_CASED}\d_]) | {_EXPONENT} | {_BASE}
          | \s*+ {_TIMES} \s*+ 10 {_EXPONENT} )?+
        (?: \ ?+ (?i: {"|".join(MAGNITUDES)} ) s?+ (?![{_CASED}]) )?+ )
    {_FACTOR}*+ | {_FACTOR}++ )"""
# Most of a text, in one go.
_NO_DIGITS = rf"""(?: [^{_CASED}\d_^\\√¼-¾⅐-⅞↉+\-−–±.]++ | (?!π) [{_CASED}]++ (?![\d_^])
    | [-+−–±.] (?! [-+−–±.\d\\√π¼-¾⅐-⅞↉{CURRENCIES}] ) )++"""
_WORD = rf"""(?!π(?![{_CASED}])) [{_CASED}] [{_CASED}\d_]*+ (?: (?<=\d) \. \d++ [{_CASED}\d_]*+ )*+
    (?: \^ \{{ {_MINUS}?+ \d++ [./] \d++ \}} | (?: \^ | (?<=_) ) \{{?+ {_MINUS}?+ \d++ \}}?+ )*+"""
_DATE = r"""(?<!\d) \d{1,4} (?P<dash>[-/.]) \d{1,2} (?P=dash) \d{1,4} (?!\d) (?: (?P=dash) \d++ )*+
    | (?<!\d) (?: \d++ 年 )?+ \d++ 月 (?: \d++ 日 )?+"""
_RATIO = r"(?<!\d) \d{1,4} (?: : \d{1,4} )++"
_VERSION = r"(?! \d{1,3} (?: \.\d{3} ){2,} (?!\d) ) \d++ (?: \.\d++ ){2,}+"
_INDEX = rf"[_^] \{{ {_MINUS}?+ \d++ (?: [./] \d++ )?+ | (?<=[{_CASED}\d)\]}}]) [_^] {_MINUS}?+ \d++"
_OF_OTHERS = rf"""(?! {_FRAC} ) \\(?:[dtc]?frac|[dt]?binom) (?![a-zA-Z]) \s*+
    (?: \{{ [^{{}}]*+ (?: \}} \s*+ (?: \{{ [^{{}}]*+ \}}? )?+ )?+ )?+"""
_SIGN = rf"""(?: (?<![^\W_]) (?<![.)\]}}]) | (?<=[{COPULAS}]) )
    (?P<sign> [-+−–±] | \\pm\ ?+ ) (?: [{CURRENCIES}] | \\\$ )?+"""
_NUMBER = rf"(?: {_SIGN} )?+ (?: (?<![\d.]) | (?<=[{_CASED}]\.) ) (?P<size> {_SIZE} )"
_NO_NUMBER = f"{_NO_DIGITS} | {_WORD} | {_DATE} | {_RATIO} | {_VERSION} | {_INDEX} | {_OF_OTHERS}"
_TOKEN = re.compile(f"{_NO_NUMBER} | (?P<number> {_NUMBER} )", re.VERBOSE)

_BEGUN = "|".join(sorted({word[:end] for word in MAGNITUDES for end in range(1, len(word) + 1)}))
_GOES_ON = re.compile(
    rf"""(?: [./⁄٫．:] | [./⁄:] \d++ | [,，'’_٬] \d{{0,2}} | _ \{{ \d* | (?<=\b0) [xXbBoO] [0-9a-fA-F]*
    | {_SPACE} \d++ [/⁄]? | \{{ ,? \}}? \d{{0,2}}
    | [eE] {_MINUS}? | \ ? (?: \^ | \*\* ) \ ? [{{(]? {_MINUS}? \d* | <[sup/>]* \d*
    | \s* {_TIMES} \s* 1 (?: 0 (?: (?: \^ | \*\*? ) \s? [{{(]? {_MINUS}? \d* )? )?
    | \.? \ ? \\[a-zA-Z,]* (?: [{{\d\[] [^{{}}]* )?
    | (?<=\d{{4}}) - \d{{0,2}} (?: - \d* )? | 年 \d* 月? \d* | \ ? (?: {_BEGUN} ) s? )?""",
    re.VERBOSE,
)
"""What stands behind a number, to the end of the text, where it may have gone on."""
_TIMES_BEGUN = re.compile(rf"\s*{_TIMES}\s*")
_DECIMAL_SIGN = re.compile("[.٫．]")


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it stands in a text."""

    text: str
    end: int
    """Where it ends."""


def numbers(text: str) -> Iterator[Number]:
    """All numbers of a text, in their order."""
    for token in _TOKEN.finditer(text):
        if token["number"] is not None:
            yield Number((token["sign"] or "") + token["size"], token.end())


def may_go_on(text: str, number: Number) -> bool:
    """Whether a number of a text that was cut off may have lost a part of itself, or be a part of something else."""
    if text.startswith("**", number.end) and text.count("**", 0, number.end) % 2:
        # What was bold ends there, and raises to no power.
        return False
    # A sign of times behind an integer is more likely a product than a power of ten.
    is_mantissa = _DECIMAL_SIGN.search(number.text) and _TIMES_BEGUN.fullmatch(text, number.end)
    return bool(is_mantissa or _GOES_ON.fullmatch(text, number.end))


def number_at_start(text: str) -> Number | None:
    """The number that a text begins with."""
    token = _TOKEN.match(text)
    if token is None or token["number"] is None:
        return None
    return Number((token["sign"] or "") + token["size"], token.end())


def extract_raw(text: str, finish_reason: FinishReason, thinking: Thinking = False) -> str | None:
    """Answer of a raw completion: the first number on its first non-blank line, else that line, else None; read after
    thoughts, if there are any.

    Where the token limit cut the line, a number at its very end (`5`, `3.`, `56,`, `1/`) may have gone on, and so may
    the line: neither is an answer.
    """
    turn = said(text, finish_reason, thinking)
    if turn is None:
        return None
    line, newline, _ = turn.text.lstrip().partition("\n")
    is_cut = turn.is_cut and not newline
    number = next(numbers(line), None)
    if number and not (is_cut and may_go_on(line, number)):
        return number.text
    return None if is_cut else line.strip() or None


def extract_first_number(text: str, finish_reason: FinishReason, thinking: Thinking = False) -> str | None:
    """The first number after the thoughts; none if the token limit may have cut it."""
    turn = said(text, finish_reason, thinking)
    number = next(numbers(turn.text), None) if turn else None
    if turn is None or number is None or (turn.is_cut and may_go_on(turn.text, number)):
        return None
    return number.text


def extract_last_number(text: str, finish_reason: FinishReason, thinking: Thinking = False) -> str | None:
    """The last number after the thoughts; none in a text that the token limit cut off, where more was to come."""
    turn = said(text, finish_reason, thinking)
    if turn is None or turn.is_cut:
        return None
    found = deque(numbers(turn.text), maxlen=1)
    return found[0].text if found else None
