r"""Equality of answers to multiple-choice questions: the key is the letter of the choice.

`C`, `(C)`, `C.`, `C)`, `\text{C}`, `\textbf{(C)}`, `$C$`, a lone `c` and `C. Paris` share a key. Anything else keeps
its exact key, so that a capital letter inside a sentence is no choice.

Simplifications:

1. Choices are A to J; a text behind the letter counts as the choice's own and is not read.
2. A lower-case letter is a choice only without text behind it.
"""

import re

from ttrl_pop.vote.graders.exact import MAX_LENGTH, ExactGrader
from ttrl_pop.vote.graders.spelling import clean, unwrapped

_CHOICE = re.compile(
    r"\(\s*([A-Ja-j])\s*\)|([A-Ja-j])\s*[.):]?|(?:\(\s*([A-J])\s*\)|([A-J])\s*[.):])\s*\S.*", re.DOTALL
)


class ChoiceGrader(ExactGrader):
    """Answers are equal if they name one choice; those that name none are compared as `ExactGrader` does."""

    def key(self, answer: str) -> str:
        if len(answer) <= MAX_LENGTH:
            choice = _CHOICE.fullmatch(unwrapped(clean(answer)).strip())
            if choice:
                return next(letter for letter in choice.groups() if letter).upper()
        return super().key(answer)
