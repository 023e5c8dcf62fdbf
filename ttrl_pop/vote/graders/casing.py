"""Capital letters: where they are a matter of style, as in words, and where they tell two answers apart.

    folded("New YORK")     "new york"     folded("Co")     "Co": a symbol     folded("AaBb")     "AaBb": a code

A word is cased as prose is: all small, with one capital at its beginning, or all in capitals. One of four letters or
more is a word, one of three with a vowel, and one of `SHORT`; what is shorter is a symbol, and keeps its case.

Simplifications:

1. `No`, `no` and `NO` are one word, nobelium and nitric oxide too.
2. Letters in pairs (`AABB`, `aabb`, `Aa`) are genotypes, never words.
3. Letters beside a word go with it, as those of `plan B` do, but not a pair or a symbol in capitals (`CO gas`).
"""

import re

SHORT = frozenset(["no", "ok", "ja", "dne", "nth"])
"""Words that are shorter, or without a vowel."""
JOINS = frozenset(["and", "or", "nor", "not", "but", "xor", "for", "the", "iff"])
"""Words that stand between letters as well as between words: they make no prose of what they join."""

_VOWEL = re.compile("[aeiouy]")
_PAIRS = re.compile(r"(?:(.)\1)+|(.)\2\2")
_PARTS = re.compile(r"[^\W\d_]+")


def folded(text: str) -> str:
    """A text of letters with its words in small letters; the rest of it keeps its case."""
    parts = _PARTS.findall(text)
    words = [part for part in parts if _is_word(part)]
    if not words:
        return text
    if all(part.casefold() in JOINS for part in words) and len(parts) > len(words):
        return _PARTS.sub(lambda part: part[0].casefold() if _is_word(part[0]) else part[0], text)
    # In a text all of capitals these say nothing.
    in_capitals = text.isupper()
    return _PARTS.sub(lambda part: part[0].casefold() if _goes_along(part[0], in_capitals) else part[0], text)


def _is_word(part: str) -> bool:
    """Whether letters are a word of its own, in one of the casings of prose."""
    small = part.casefold()
    if not _is_cased_as_prose(part) or _PAIRS.fullmatch(small):
        return False
    return (
        small in SHORT or len(part) > 3 or not part.isascii() or (len(part) == 3 and _VOWEL.search(small) is not None)
    )


def _goes_along(part: str, in_capitals: bool) -> bool:
    """Whether letters beside a word are cased as it is."""
    if _is_word(part):
        return True
    is_pair = len(part) > 1 and _PAIRS.fullmatch(part.casefold())
    is_symbol = len(part) > 1 and part.isupper() and not in_capitals
    return _is_cased_as_prose(part) and not is_pair and not is_symbol


def _is_cased_as_prose(part: str) -> bool:
    return part.islower() or part.isupper() or part.istitle() or part.casefold() == part
