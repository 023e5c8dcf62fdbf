"""Texts of the letters experiment: a prompt `K>`, then 64 blanks `_` with eight of the letter somewhere, and noise."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SIGNS = LETTERS + ">_!"
"""The vocabulary: a token is an index into it."""
END_OF_PROMPT, BLANK, NOISE = (SIGNS.index(sign) for sign in ">_!")
BODY = 64
"""Tokens behind the prompt."""
RUN = 8
"""Length of the run of letters."""
PROMPT = 2
NOISE_RATE = 1 / 16

Tokens = npt.NDArray[np.int64]


def texts(count: int, generator: np.random.Generator, noise_rate: float = NOISE_RATE) -> Tokens:
    """Texts (count, 66): the letter and the place of its run are uniform, then each sign of the body may be noise."""
    letter_B = generator.integers(len(LETTERS), size=count)
    place_B = generator.integers(BODY - RUN + 1, size=count)
    offset_BT = np.arange(BODY) - place_B[:, None]
    body_BT = np.where((offset_BT >= 0) & (offset_BT < RUN), letter_B[:, None], BLANK)
    body_BT = np.where(generator.random((count, BODY)) < noise_rate, NOISE, body_BT)
    return np.concatenate([prompts(letter_B), body_BT], axis=1)


def prompts(letter_B: npt.NDArray[np.int64]) -> Tokens:
    """Prompts (B, 2) that ask for these letters."""
    return np.stack([letter_B, np.full_like(letter_B, END_OF_PROMPT)], axis=1)


def spelled(tokens_T: Tokens) -> str:
    """A text as it is printed."""
    return "".join(SIGNS[token] for token in tokens_T)


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a text of the body is."""

    place: int | None
    """Where its run of letters begins; None without a letter. Of a text that is not well-formed, the first letter."""
    is_well_formed: bool


def parse(text_T: Tokens) -> Parsed:
    """Whether noise alone parts a text from one of the task: one run of eight of the prompt's letter, else blanks.

    Where noise hides an end of the run, the first place that explains all letters counts.
    """
    letter, body = text_T[0], text_T[PROMPT:]
    is_letter = body == letter
    found = np.flatnonzero(is_letter)
    if not len(found):
        return Parsed(None, False)
    first, last = int(found[0]), int(found[-1])
    if np.all(is_letter | (body == BLANK) | (body == NOISE)):
        for place in range(max(0, last - RUN + 1), min(first, BODY - RUN) + 1):
            run = body[place : place + RUN]
            if np.all((run == letter) | (run == NOISE)):
                return Parsed(place, True)
    return Parsed(first, False)
