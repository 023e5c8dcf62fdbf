r"""What a chat completion marks as its answer, and the answer of one that was asked for any."""

import re
from collections.abc import Iterator

from ttrl_pop.text import last_box, last_box_with_place
from ttrl_pop.thoughts import Thinking
from ttrl_pop.types import FinishReason
from ttrl_pop.vote.extract.answer_lines import last_answer_line, last_said_answer
from ttrl_pop.vote.extract.answer_tags import last_tagged
from ttrl_pop.vote.extract.json_answers import last_json_answer, whole_json_answer
from ttrl_pop.vote.extract.remarks import answer_itself
from ttrl_pop.vote.extract.turn import Turn, said

# GSM8K's mark stands on the last line; on any other, `####` opens a heading.
_HASH_LINE = re.compile(r"[ \t]*+####(?!#)(.*)")


def extract_chat(text: str, finish_reason: FinishReason, thinking: Thinking = False) -> str | None:
    r"""Answer of a chat completion, read after the thoughts; thoughts that never closed hold no answer.

    The first of what `marked_answers` finds, else the value in the last sentence `… the answer is 57`, else None.

    Args:
        thinking: the prompt ends inside the thoughts (a chat template that writes `<think>` itself), or their marks.
    """
    turn = said(text, finish_reason, thinking)
    if turn is None:
        return None
    return next(marked_answers(turn), None) or last_said_answer(turn.finished_lines)


def marked_answers(turn: Turn) -> Iterator[str]:
    r"""Answers that stand in a mark, the surest first.

    1. the field of an answer, where the whole text is a JSON object
    2. the balanced, non-empty `\boxed{}`, `\fbox{}` or `<answer>` that opens last
    3. the last line `Answer: ...`, or the line below such a heading
    4. the field of an answer, in the last JSON object
    5. `#### ...` on the last line

    Of a completion that the token limit cut off, the last line is no such line: its end is missing. A box, tags or an
    object that were closed count.
    """
    if (field := whole_json_answer(turn)) is not None:
        yield last_box(field) or answer_itself(field) or field
    box, tagged = last_box_with_place(turn.text), last_tagged(turn)
    if tagged and (box is None or tagged[0] > box[0]):
        yield _inside(tagged[1])
    elif box:
        yield box[1]
    if line := last_answer_line(turn):
        yield line
    if (field := last_json_answer(turn)) is not None:
        yield answer_itself(field) or field
    if (marked := _hash_answer(turn.finished_lines)) is not None:
        yield marked


def _inside(content: str) -> str:
    """The answer in what stands between tags: what it marks itself, else all of it."""
    turn = Turn(content, is_cut=False)
    found = whole_json_answer(turn) or last_answer_line(turn)
    return found or (content if "\n" in content else answer_itself(content) or content)


def _hash_answer(text: str) -> str | None:
    text = text.rstrip()
    line = _HASH_LINE.match(text, text.rfind("\n") + 1)
    return answer_itself(line[1]) if line else None
