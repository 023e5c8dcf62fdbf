"""Tags around an answer, as prompts and recipes of GRPO ask for them: `<answer>57</answer>`."""

import re

from ttrl_pop.vote.extract.turn import Turn

TAGS = (
    ("<answer>", "</answer>"),
    ("<final_answer>", "</final_answer>"),
    ("<finalanswer>", "</finalanswer>"),
    ("<final-answer>", "</final-answer>"),
    ("<ans>", "</ans>"),
    ("<solution>", "</solution>"),
    ("[answer]", "[/answer]"),
    ("[final_answer]", "[/final_answer]"),
    ("<|begin_of_answer|>", "<|end_of_answer|>"),
    ("<|begin_of_box|>", "<|end_of_box|>"),  # GLM-V
)
"""What opens and what closes an answer, in upper or lower case."""

_CLOSING = dict(TAGS)
_TAG = re.compile("|".join(re.escape(tag) for pair in TAGS for tag in pair), re.IGNORECASE)


def last_tagged(turn: Turn) -> tuple[int, str] | None:
    """Where the non-empty tags that open last begin, and what they hold.

    Tags in `<>` that never close hold an answer of one line where the model ended by itself: the closing one may be the
    text that generation stops at.
    """
    text = turn.text
    lowered = text.lower()
    if not any(opening in lowered for opening, _ in TAGS):
        return None
    best: tuple[int, str] | None = None
    opened: re.Match[str] | None = None
    for tag in _TAG.finditer(text):
        name = tag[0].lower()
        if name in _CLOSING:
            opened = tag
        elif opened and _CLOSING[opened[0].lower()] == name:
            if inside := text[opened.end() : tag.start()].strip():
                best = opened.end(), inside
            opened = None
    if (
        opened
        and opened[0].startswith("<")
        and not turn.is_cut
        and (rest := text[opened.end() :].strip())
        and "\n" not in rest
    ):
        return opened.end(), rest
    return best
