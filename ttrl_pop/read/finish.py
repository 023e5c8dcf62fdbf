"""How a completion ended, as the tools that write rollouts say it → stop, length, or a word that is not known.

Every object on the way from the row to the text is asked, and so is what lies in its `WRAPPERS`. A field that says
"cut off" wins over all others, as half an answer must not vote; then one that says "stop"; then an unknown word, which
counts as cut off. Nothing said is `stop`.

| field | |
|---|---|
| `REASON_FIELDS` | a word of `FINISH_REASONS`, or an object with one in `type` or `reason` |
| `CUT_FLAGS` | true: cut off |
| `END_FLAGS` | false: cut off |
| others with a name such as `completion_status` | a word of `LIMITS`: cut off; any other says nothing |
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ttrl_pop.read.rows import Number, is_text, kind
from ttrl_pop.text import shown
from ttrl_pop.types import FinishReason

LIMITS = (
    *("length", "limit", "max_length", "model_length", "max_model_length", "context_length", "context_length_exceeded"),
    *("max_tokens", "max_new_tokens", "max_output_tokens", "max_completion_tokens", "max_token", "token_limit"),
    *("length_limit", "length_limit_reached", "length_capped", "model_context_window_exceeded", "stopped_limit"),
    *("truncated", "incomplete", "in_progress", "time_limit"),
)
"""Others' words for a limit that cut a completion off."""

FINISH_REASONS: Mapping[str, FinishReason] = {
    **dict.fromkeys(("stop", "stopped", "stop_sequence", "stop_str", "stop_token", "word", "end_turn", "end"), "stop"),
    **dict.fromkeys(("eos", "eos_token", "eos_token_id", "normal", "success"), "stop"),
    # Names of tokens that end a text, without their brackets.
    **dict.fromkeys(("endoftext", "im_end", "eot", "eot_id", "eom_id", "end_of_turn", "end_of_text", "s"), "stop"),
    **dict.fromkeys(("complete", "completed", "finish", "finished", "done", "matched_stop", "stop_string"), "stop"),
    **dict.fromkeys(("tool_calls", "tool_call", "tool_use", "tool", "function_call", "function"), "stop"),
    **dict.fromkeys(LIMITS, "length"),
    # An end that was neither the model's nor the limit's: what the text would have come to say is not there.
    **dict.fromkeys(("abort", "aborted", "cancelled", "canceled", "interrupted", "timeout", "user_cancel"), "length"),
    **dict.fromkeys(("error", "failed", "other", "repetition", "repetition_detected", "pause_turn"), "length"),
    **dict.fromkeys(("insufficient_system_resource", "none", "unknown", "finish_reason_unspecified"), "length"),
    # A filter, which ends a text in the middle.
    **dict.fromkeys(("content_filter", "content_filtered", "guardrail_intervened", "refusal", "safety"), "length"),
    **dict.fromkeys(("recitation", "language", "blocklist", "prohibited_content", "spii", "error_toxic"), "length"),
    **dict.fromkeys(("malformed_function_call", "unexpected_tool_call", "sensitive"), "length"),
}
"""Others' words for an end that was reached, and for a completion that was cut off."""

REASON_FIELDS = (
    *("finish_reason", "finishReason", "finish_reasons", "finishReasons", "done_reason", "done_reasons"),
    *("stop_reason", "stopReason", "stop_reasons", "stop_type", "completion_reason", "completionReason", "end_reason"),
    *("incomplete_details", "finish_type", "termination_reason"),
)
"""Fields that hold a word for how a completion ended."""

CUT_FLAGS = (
    *(
        "truncated",
        "is_truncated",
        "was_truncated",
        "response_truncated",
        "stopped_limit",
        "hit_limit",
        "limit_reached",
    ),
    *("hit_max_tokens", "max_tokens_reached", "reached_max_tokens", "hit_max_length", "length_exceeded", "cut_off"),
    *("overlong", "aborted"),
)
"""Fields that are true where a completion was cut off."""

END_FLAGS = (
    *("finished", "is_finished", "done", "completed", "is_complete", "complete", "is_completed", "stop", "stopped"),
    *("has_eos", "eos", "eos_token", "eos_reached", "ended_with_eos", "hit_eos", "is_eos"),
)
"""Fields that are false where a completion did not reach its end."""

WRAPPERS = (
    *("details", "meta_info", "metadata", "meta", "info", "response_metadata", "generation_info", "generation_details"),
    *("response_info", "completion_info", "stop_info", "usage", "extra", "extra_info", "raw"),
    *("output", "response", "completion", "generation", "result"),
)
"""Fields of objects beside the text that may say how it ended."""

# Names that are not in the tables count by their words, and then only where they hold one of `LIMITS`.
_OF_END = frozenset(
    ("finish", "finished", "stop", "done", "completion", "termination", "end", "generation", "response")
)
_OF_REASON = frozenset(("reason", "type", "status", "condition", "cause"))
_ALONE = ("status", "finish", "termination", "reason")
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_LONGEST_WORD = 60
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"[a-z]+|[A-Z][a-z]*")


@dataclass(frozen=True, slots=True)
class Ending:
    """How a completion ended."""

    reason: FinishReason
    unknown: str | None = None
    """The word that was not known, where it alone decided."""


STOP = Ending("stop")
CUT = Ending("length")

FINISH_FIELDS = (*REASON_FIELDS, *CUT_FLAGS, *END_FLAGS, *_ALONE, *WRAPPERS)
"""Fields that may say how a completion ended."""


def ending(objects: Iterable[Mapping[str, Any]]) -> Ending:
    """How a completion ended, as the objects around its text say it."""
    found = [said for fields in objects for said in _said(fields)]
    if CUT in found:
        return CUT
    if STOP in found:
        return STOP
    return found[0] if found else STOP


def _said(fields: Mapping[str, Any], wrapped: bool = False) -> Iterator[Ending]:
    for name, value in fields.items():
        if value is None or value in ("", {}, []):
            continue
        if name in REASON_FIELDS:
            yield _of_word(value)
        elif (name in CUT_FLAGS and _flag(value) is True) or (name in END_FLAGS and _flag(value) is False):
            yield CUT
        elif name in WRAPPERS and isinstance(value, dict) and not wrapped:
            yield from _said(value, wrapped=True)
        elif is_text(value) and len(value) < _LONGEST_WORD and _tells_end(name) and _plain(value) in LIMITS:
            yield CUT


@lru_cache(maxsize=4096)
def _tells_end(name: str) -> bool:
    """Whether a name that is in no table may be that of a word for how a completion ended."""
    words = {word.lower() for word in _WORD.findall(name)}
    return name in _ALONE or not (words.isdisjoint(_OF_END) or words.isdisjoint(_OF_REASON))


def _flag(value: Any) -> bool | None:
    """Whether a flag is set, as a bool, a number or a word; None for what is no flag."""
    return value if isinstance(value, bool) else _FLAGS.get(str(value).lower()) if isinstance(value, str) else None


def _of_word(value: Any) -> Ending:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        value = next((value[key] for key in ("type", "reason") if value.get(key) is not None), value)
    if not is_text(value):
        return Ending("length", shown(value) if isinstance(value, Number) else kind(value))
    known = _known(value)
    return Ending("length", f"'{shown(value)}'") if known is None else STOP if known == "stop" else CUT


def _known(word: str) -> FinishReason | None:
    word = _plain(word)
    return FINISH_REASONS.get(word) or FINISH_REASONS.get(word.removeprefix("finish_reason_"))


def _plain(word: str) -> str:
    """A word as the tables write it; enumerations write themselves as `FinishReason.STOP`, tokens as `<|im_end|>`."""
    return _HUMP.sub("_", word.strip("<|/> \n").rpartition(".")[2]).lower().replace("-", "_").replace(" ", "_")
