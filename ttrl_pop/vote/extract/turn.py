"""What a model says in its turn: without thoughts, and up to the special token that ends it.

A text with special tokens comes from rollouts that were saved with them.
"""

import re
from dataclasses import dataclass

from ttrl_pop.thoughts import Thinking, spoken
from ttrl_pop.types import FinishReason

ENDS = (
    "<|im_end|>",  # Qwen, SmolLM, Yi and most since
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",  # Llama
    "<|eom_id|>",
    "<|eot|>",
    "<end_of_turn>",  # Gemma
    "<turn|>",
    "<eos>",
    "<pad>",
    "</s>",  # Llama 2, Mistral
    "<|end|>",  # Phi, gpt-oss
    "<|return|>",
    "<|call|>",
    "<|endofturn|>",
    "[|endofturn|]",  # EXAONE
    "<|end_of_sentence|>",
    "<｜end▁of▁sentence｜>",  # DeepSeek
    "<|END_RESPONSE|>",  # Command
    "<|END_OF_TURN_TOKEN|>",
    "<|end_of_solution|>",  # Sky-T1, OpenThinker
    "<|end_of_turn|>",
    "<|eos|>",
    "<|pad|>",
    "<|user|>",  # GLM
    "<|observation|>",
    "<|role_end|>",  # Ling
    "<|assistant_end|>",
    "<|im_start|>",
    "<|start_header_id|>",
    "<|start_of_role|>",  # Granite
    "<start_of_turn>",
    "<seed:eos>",
    "<|hy_eos|>",
    "[EOS]",
    "[PAD]",
    "[INST]",  # Mistral
    "[e~[",  # MiniMax
    "[unused10]",  # Pangu
)
"""Special tokens that end a turn, or begin the next one. What stands behind one is not of the turn."""

STARTS = (
    "<|im_start|>",
    "<|start|>",  # gpt-oss
    "<|message|>",
    "<|assistant|>",  # GLM, Phi, Granite
    "<｜Assistant｜>",  # DeepSeek
    "<|start_header_id|>",  # Llama
    "<|end_header_id|>",
    "<|begin_of_text|>",
    "<|begin_of_solution|>",  # Sky-T1, OpenThinker
    "<|START_OF_TURN_TOKEN|>",  # Command
    "<|CHATBOT_TOKEN|>",
    "<|START_RESPONSE|>",
    "<|START_TEXT|>",
    "<start_of_turn>",  # Gemma
    "<|turn>",
    "<bos>",
    "<s>",
    "<pad>",  # on the left
    "<|pad|>",
    "<|endoftext|>",
)
"""Special tokens that begin a turn or a part of one, or fill what is before it."""
ROLES = ("assistant", "model", "final")
"""What may stand behind them."""

_END = re.compile("|".join(map(re.escape, sorted(ENDS, key=len, reverse=True))))
_START = re.compile(rf"(?:\s*+(?:{'|'.join(map(re.escape, STARTS))})(?:(?:{'|'.join(ROLES)})(?![a-z]))?+)++")


@dataclass(frozen=True, slots=True)
class Turn:
    """What was said."""

    text: str
    is_cut: bool
    """The token limit cut it off: what stands at its end may have gone on."""

    @property
    def finished_lines(self) -> str:
        """The text without the line that the token limit cut."""
        return self.text[: self.text.rfind("\n") + 1] if self.is_cut else self.text


def said(text: str, finish_reason: FinishReason, thinking: Thinking) -> Turn | None:
    """What a completion says; None where its thoughts never closed."""
    found = spoken(text, thinking, finish_reason == "length")
    if found is None:
        return None
    if start := _START.match(found):
        found = found[start.end() :]
    end = _END.search(found)
    return Turn(found[: end.start()], is_cut=False) if end else Turn(found, finish_reason == "length")
