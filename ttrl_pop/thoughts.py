"""Marks around a model's thoughts, and what it says after them.

A new family of models is a line in `MARKS`; marks of one model alone are told by `vote.thinking`.

Simplifications:

1. What stands before the last closing mark is thoughts, whichever mark opened them, and also where none did: a chat
   template may have.
2. A mark that an answer quotes is a mark.
3. A mark of plain words, as Granite has them, counts only where the text begins with the one that opens, and has the
   one that closes or was cut off: in any other place it is a sentence.
"""

import re
from functools import cache
from typing import TypeAlias

Thinking: TypeAlias = bool | tuple[str, str]
"""What is known of a chat prompt's thoughts: whether it ends inside them, or the marks that open and close them, beside
those of `MARKS`; an empty opening mark says that it ends inside them."""

MARKS = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen, GLM, Phi-4-reasoning, Hunyuan, ERNIE, MiniMax and most since
    ("<thinking>", "</thinking>"),  # prompts written for Claude
    ("<thought>", "</thought>"),  # EXAONE Deep, Marco-o1
    ("<thoughts>", "</thoughts>"),
    ("<thinking_process>", "</thinking_process>"),
    ("<thought_process>", "</thought_process>"),
    ("<reasoning_process>", "</reasoning_process>"),
    ("<inner_thoughts>", "</inner_thoughts>"),
    ("<internal_thoughts>", "</internal_thoughts>"),
    ("<deep_think>", "</deep_think>"),
    ("<reasoning>", "</reasoning>"),  # Reka Flash, recipes of GRPO
    ("<reason>", "</reason>"),
    ("<reflection>", "</reflection>"),
    ("<analysis>", "</analysis>"),
    ("<rationale>", "</rationale>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<inner_monologue>", "</inner_monologue>"),
    ("<internal_monologue>", "</internal_monologue>"),
    ("<chain_of_thought>", "</chain_of_thought>"),
    ("<cot>", "</cot>"),
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<longcat_think>", "</longcat_think>"),  # LongCat
    ("<think_fast>", "</think_fast>"),  # K2-V2
    ("<think_faster>", "</think_faster>"),
    ("<mm:think>", "</mm:think>"),
    ("<start_working_out>", "<end_working_out>"),  # recipes of GRPO
    ("[THINK]", "[/THINK]"),  # Magistral, Ministral
    ("[THINKING]", "[/THINKING]"),
    ("[REASONING]", "[/REASONING]"),
    ("[THOUGHT]", "[/THOUGHT]"),
    ("[REASON]", "[/REASON]"),
    ("[unused16]", "[unused17]"),  # Pangu
    ("◁think▷", "◁/think▷"),  # Kimi
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    ("<|begin_of_thinking|>", "<|end_of_thinking|>"),
    ("<|start_of_thought|>", "<|end_of_thought|>"),
    ("<|thought_start|>", "<|thought_end|>"),
    ("<|think_start|>", "<|think_end|>"),
    ("<|think|>", "<|/think|>"),
    ("<|thinking|>", "<|/thinking|>"),
    ("<|reasoning|>", "<|/reasoning|>"),
    ("<|start_think|>", "<|end_think|>"),
    ("<|begin_think|>", "<|end_think|>"),
    ("<|think_begin|>", "<|think_end|>"),
    ("<|thinking_start|>", "<|thinking_end|>"),
    ("<|start_of_thinking|>", "<|end_of_thinking|>"),
    ("<|begin_of_reasoning|>", "<|end_of_reasoning|>"),
    ("<|begin_reasoning|>", "<|end_reasoning|>"),
    ("<|reasoning_start|>", "<|reasoning_end|>"),
    ("<｜begin▁of▁thinking｜>", "<｜end▁of▁thinking｜>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("<unused94>thought", "<unused95>"),  # MedGemma
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<|channel|>analysis", "<|channel|>final"),  # gpt-oss
    ("<|channel|>commentary", "<|channel|>final"),
    ("assistantanalysis", "assistantfinal"),  # gpt-oss, its special tokens left out
    ("assistantcommentary", "assistantfinal"),
    ("Here is my thought process:", "Here is my response:"),  # Granite 3.2
    ("Here's my thought process:", "Here's my response:"),
)
"""What opens thoughts and what closes them, in upper or lower case."""

SHORTEST = 3
"""Characters of a special token, at least, that is taken for a part of a mark."""

_OPENING, _CLOSING = (frozenset(mark.lower() for mark in marks) for marks in zip(*MARKS, strict=True))
# The channel that opens a text of gpt-oss without its special tokens; a text that begins with the word goes on with a
# space or a mark.
_STRIPPED_CHANNEL = re.compile(r"\s*+(?:analysis|commentary)(?=[^\W_]|[\\$\"“(\[])")
_IN_WORDS = frozenset(mark for mark in _OPENING | _CLOSING if mark.endswith(":"))
"""Marks that are plain words."""
_BEGINS_IN_WORDS = re.compile(
    rf"""(?:\s|<\|[^<>|]{{1,40}}\|>(?:assistant)?)*+(?:{"|".join(sorted(map(re.escape, _OPENING & _IN_WORDS)))})"""
)
_TAG = re.compile(r"</?[a-z][a-z_:]*>")
_ATTRIBUTES = re.compile(r"\s[^<>]*>\Z")
"""What may stand in a tag behind its name."""
_MESSAGE = "<|message|>"
"""What stands between the name of a channel and its text."""


def spoken(text: str, thinking: Thinking = False, is_cut: bool = False) -> str | None:
    """What follows the thoughts; None where they never closed.

    Args:
        is_cut: the token limit cut the text off.
    """
    also = thinking if isinstance(thinking, tuple) else None
    is_open = thinking is True or (also is not None and not also[0]) or bool(_STRIPPED_CHANNEL.match(text))
    closing = {*_CLOSING, also[1].lower()} if also else _CLOSING
    start = 0
    # The one letter that becomes two in lower case would move all that stands behind it.
    lowered = text.replace("\u0130", "i").lower()
    begins = _BEGINS_IN_WORDS.match(lowered)
    closes = begins is not None and (is_cut or any(mark in lowered[begins.end() :] for mark in _CLOSING & _IN_WORDS))
    in_words = is_open or closes
    for mark in _marks(also).finditer(lowered):
        if mark[0] in _IN_WORDS and not in_words:
            continue
        is_open, start = _ATTRIBUTES.sub(">", mark[0]) not in closing, mark.end()
    return None if is_open else text[start:].removeprefix(_MESSAGE)


def ends_in_thoughts(prompt: str, opening: str = "") -> bool:
    """Whether a prompt ends with a mark that opens thoughts: one of `MARKS`, or `opening`."""
    end = prompt.rstrip().removesuffix(_MESSAGE).lower()
    own = opening.strip().lower()
    return end.endswith(tuple(_OPENING)) or (own != "" and end.endswith(own))


def is_part_of_mark(token: str) -> bool:
    """Whether a special token is a mark of thoughts or stands in one: left out, thoughts are like speech."""
    text = token.strip().lower()
    is_sign = len(text) >= SHORTEST and not text.isalnum()
    return is_sign and (text == _MESSAGE or any(text in mark for mark in _OPENING | _CLOSING))


@cache
def _marks(also: tuple[str, str] | None) -> re.Pattern[str]:
    """Finds marks in lower case, those of the user's too.

    There are no groups in it: without them the characters that begin a mark are looked for, and all others passed over.
    """
    marks = {*_OPENING, *_CLOSING, *(mark.lower() for mark in also or () if mark)}
    return re.compile("|".join(map(_pattern, sorted(marks, key=lambda mark: (-len(mark), mark)))))


def _pattern(mark: str) -> str:
    """A pattern of a mark; of a tag also with attributes or a space in it, as in `<think lang="en">`."""
    return re.escape(mark[:-1]) + r"(?:\s[^<>]{0,100}+)?+>" if _TAG.fullmatch(mark) else re.escape(mark)
