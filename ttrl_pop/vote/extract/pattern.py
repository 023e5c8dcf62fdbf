"""Extraction by a pattern of the user's: `regex:PATTERN`."""

import regex

from ttrl_pop.errors import UsageError
from ttrl_pop.text import shown
from ttrl_pop.types import FinishReason

SECONDS = 5.0
"""Longest time for one completion. An ordinary pattern takes milliseconds; one that tries all ways to part a long line
would take years."""


class PatternExtractor:
    """The last match that does not touch a cut end; its first group where it has groups."""

    def __init__(self, pattern: str) -> None:
        """
        Raises:
            UsageError: the pattern is not valid.
        """
        try:
            pattern.encode()
            self._pattern = regex.compile(pattern)
        except UnicodeEncodeError as error:
            raise UsageError(
                f"extract 'regex:{shown(pattern)}' holds half a character (a lone surrogate); write it in UTF-8"
            ) from error
        except (regex.error, OverflowError, RecursionError) as error:
            raise UsageError(f"extract 'regex:{shown(pattern)}' is not a valid regular expression: {error}") from error

    def __call__(self, text: str, finish_reason: FinishReason) -> str | None:
        """
        Raises:
            UsageError: it takes longer than `SECONDS`.
        """
        last = None
        try:
            for match in self._pattern.finditer(text, timeout=SECONDS):
                if match[0] and not (finish_reason == "length" and match.end() == len(text)):
                    last = match
        except TimeoutError as error:
            raise UsageError(
                f"extract 'regex:{shown(self._pattern.pattern)}' takes more than {SECONDS:g} s for a completion of "
                f"{len(text)} characters; a repetition inside a repetition, as in (a+)+, tries too many ways: write it "
                "without"
            ) from error
        if last is None:
            return None
        found: str | None = last[1] if self._pattern.groups else last[0]
        return found or None
