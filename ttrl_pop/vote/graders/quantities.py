r"""Numbers as exact fractions, with the unit beside them.

    quantity(r"1\frac12\text{ cm}")     (Fraction(3, 2), "cm")         quantity("3-2")     None: a score, not a number

Simplifications:

1. Units, percent and degree signs are told apart, never converted: `50\%` is 50.
2. A mixed number has a part below one (`1 234/5` is text), and one without a leading zero: `10 000/3` is a quotient.
3. A power of ten beyond `MAX_EXPONENT` is no number.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from ttrl_pop.vote.graders.units import currency_before, unit_of

MAX_EXPONENT = 1000
"""Farthest power of ten that becomes a number."""

_DECIMAL = r"(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
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


def quantity(text: str) -> tuple[Fraction, str] | None:
    """The number that a text is and its unit, "" where it has none; None if the text is something else."""
    given, text = text, (_FRAC.sub(r" \1/\2 ", text) if "\\" in text else text).strip()
    currency = ""
    match = _NUMBER.match(text)
    if match is None:
        if text[:1].islower() or text[:1] in "\\([{":
            return None
        currency, text = currency_before(text)
        if not currency or not (match := _NUMBER.match(text)):
            return None
    unit = unit_of(text[match.end() :], behind_formula=r"\frac" in given)
    if unit is None:
        return None
    number = _value(match)
    if number is None:
        return None
    return -number if match["sign"] == "-" else number, unit or currency


def tell_apart(units: Sequence[str]) -> bool:
    """Whether the units of a list's elements, "" where one has none, say what belongs to which of its numbers.

    They do where they differ, and where some elements have the unit and some have none. But at the last element alone
    it is that of all: `3, 5 cm`.
    """
    found = set(units) - {""}
    return len(found) > 1 or (bool(found) and "" in units and any(units[:-1]))


def _value(match: re.Match[str]) -> Fraction | None:
    """Value of a match of `_NUMBER` without its sign; None for a zero denominator or a far exponent."""
    if match["whole"]:
        part, of = int(match["part"]), int(match["of"])
        is_part = part < of and not re.match("0[0-9]", match["part"])
        return int(match["whole"]) + Fraction(part, of) if is_part else None
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
