"""How a completion ended, as the tools that write rollouts say it → stop, length, or a word that is not known.

Every object on the way from the row to the text is asked, and so is what lies in its `WRAPPERS`. A field that says
"cut off" wins over all others, as half an answer must not vote; then one that says "stop"; then an unknown word, which
counts as cut off. Nothing said is `stop`.

| field | |
|---|---|
| `REASON_FIELDS` | a word of `FINISH_REASONS`, or an object with one in `type` or `reason` |
| `CUT_FLAGS` | true: cut off |
| `END_FLAGS` | false: cut off |
| `status` | a word of `CUT_STATUS`: cut off; any other says nothing |
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ttrl_pop.read.rows import Number, is_text, kind
from ttrl_pop.text import shown
from ttrl_pop.types import FinishReason

FINISH_REASONS: Mapping[str, FinishReason] = {
    **dict.fromkeys(("stop", "stopped", "stop_sequence", "stop_str", "stop_token", "word", "end_turn", "end"), "stop"),
    **dict.fromkeys(("eos", "eos_token", "eos_token_id", "normal", "success"), "stop"),
    # Names of tokens that end a text, without their brackets.
    **dict.fromkeys(("endoftext", "im_end", "eot", "eot_id", "eom_id", "end_of_turn", "end_of_text", "s"), "stop"),
    **dict.fromkeys(("complete", "completed", "finish", "finished", "done", "matched_stop", "stop_string"), "stop"),
    **dict.fromkeys(("tool_calls", "tool_call", "tool_use", "tool", "function_call", "function"), "stop"),
    **dict.fromkeys(("length", "limit", "max_length", "model_length", "max_model_length", "context_length"), "length"),
    **dict.fromkeys(("max_tokens", "max_new_tokens", "max_output_tokens", "max_completion_tokens"), "length"),
    **dict.fromkeys(("max_token", "token_limit", "length_limit", "length_capped", "truncated", "incomplete"), "length"),
    **dict.fromkeys(
        ("context_length_exceeded", "model_context_window_exceeded", "error_limit", "stopped_limit"), "length"
    ),
    # An end that was neither the model's nor the limit's: what the text would have come to say is not there.
    **dict.fromkeys(("abort", "aborted", "cancelled", "canceled", "interrupted", "timeout", "time_limit"), "length"),
    **dict.fromkeys(("error", "failed", "other", "repetition", "repetition_detected", "pause_turn"), "length"),
    **dict.fromkeys(("insufficient_system_resource", "none", "unknown", "finish_reason_unspecified"), "length"),
    # A filter, which ends a text in the middle.
    **dict.fromkeys(("content_filter", "content_filtered", "guardrail_intervened", "refusal", "safety"), "length"),
    **dict.fromkeys(("recitation", "language", "blocklist", "prohibited_content", "spii", "error_toxic"), "length"),
    **dict.fromkeys(("malformed_function_call", "unexpected_tool_call", "user_cancel", "sensitive"), "length"),
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
        "hit_max_tokens",
    ),
    *("cut_off", "is_cut_off", "length_exceeded", "max_tokens_reached", "exceeded_max_length", "overlong", "aborted"),
)
"""Fields that are true where a completion was cut off."""

END_FLAGS = (
    *("finished", "is_finished", "done", "completed", "is_complete", "complete", "is_completed", "stop", "stopped"),
    *("has_eos", "eos", "eos_reached", "ended_with_eos", "hit_eos", "is_eos"),
)
"""Fields that are false where a completion did not reach its end."""

CUT_STATUS = ("incomplete", "in_progress", "failed", "cancelled", "truncated", "length")
"""Words of the field `status` for a completion that was cut off."""

WRAPPERS = (
    *("details", "meta_info", "metadata", "meta", "info", "response_metadata", "generation_info", "generation_details"),
    *("stop_info", "usage", "extra"),
)
"""Fields of objects beside the text that may say how it ended."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a completion ended."""

    reason: FinishReason
    unknown: str | None = None
    """The word that was not known, where it alone decided."""


STOP = Ending("stop")
CUT = Ending("length")

FINISH_FIELDS = (*REASON_FIELDS, *CUT_FLAGS, *END_FLAGS, "status", *WRAPPERS)
"""Fields that may say how a completion ended."""


def ending(objects: Iterable[Mapping[str, Any]]) -> Ending:
    """How a completion ended, as the objects around its text say it."""
    found = [said for fields in objects for said in _said(fields)]
    if CUT in found:
        return CUT
    if STOP in found:
        return STOP
    return found[0] if found else STOP


def _said(fields: Mapping[str, Any]) -> Iterator[Ending]:
    for name in REASON_FIELDS:
        if (value := fields.get(name)) is not None and value not in ("", {}, []):
            yield _of_word(value)
    if any(fields.get(name) is True for name in CUT_FLAGS) or any(fields.get(name) is False for name in END_FLAGS):
        yield CUT
    status = fields.get("status")
    if is_text(status) and status.lower() in CUT_STATUS:
        yield CUT
    for name in WRAPPERS:
        if isinstance(inner := fields.get(name), dict):
            yield from _said({key: value for key, value in inner.items() if key not in WRAPPERS})


def _of_word(value: Any) -> Ending:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        value = next((value[key] for key in ("type", "reason") if value.get(key) is not None), None)
    if not is_text(value):
        return Ending("length", shown(value) if isinstance(value, Number) else kind(value))
    # An enumeration writes itself as `FinishReason.STOP`.
    word = value.strip("<|/> \n").rpartition(".")[2].lower().replace("-", "_").replace(" ", "_")
    known = FINISH_REASONS.get(word) or FINISH_REASONS.get(word.removeprefix("finish_reason_"))
    return Ending("length", f"'{shown(value)}'") if known is None else STOP if known == "stop" else CUT
