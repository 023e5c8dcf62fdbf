"""How a completion ended, as the tools that write rollouts say it → stop, length, or a word that is not known.

Every object on the way from the row to the text is asked, and so is what lies in its `WRAPPERS`. A field that says
"cut off" wins over all others, as half an answer must not vote; then one that says "stop"; then an unknown word, which
counts as cut off; then a count of tokens that is the limit's. Nothing said is `stop`.

| field | |
|---|---|
| `REASON_FIELDS` | a word of `FINISH_REASONS`, or an object with one in `type` or `reason` |
| `CUT_FLAGS` | true: cut off |
| `END_FLAGS` | false: cut off |
| others with a name such as `output_truncated` or `limit_hit` | true: cut off |
| others with a name such as `completion_status` | a word of `LIMITS`: cut off; any other says nothing |
| `COUNT_FIELDS`, `LIMIT_FIELDS` | the same number in one of each: cut off |
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    *("output", "response", "completion", "generation", "result", "body", "choices", "candidates"),
    *("raw_response", "response_raw", "raw_output", "api_response", "best_of_sequences", "token_usage"),
    *("usage_metadata", "usageMetadata", "additional_kwargs", "options", "sampling_params", "sampling"),
    *("generation_config", "generationConfig", "generation_kwargs", "gen_kwargs", "parameters", "params", "request"),
)
"""Fields of objects beside the text, or of a list of one, that may say how it ended."""

COUNT_FIELDS = (
    *("completion_tokens", "output_tokens", "generated_tokens", "num_completion_tokens", "num_output_tokens"),
    *("num_generated_tokens", "response_tokens", "tokens_predicted", "eval_count", "candidatesTokenCount"),
    *("candidates_token_count", "completionTokens", "outputTokens", "n_generated_tokens", "tokens_generated"),
)
"""Fields of how many tokens a completion has, its prompt not among them."""

LIMIT_FIELDS = (
    *("max_tokens", "max_new_tokens", "max_completion_tokens", "max_output_tokens", "maxOutputTokens", "maxTokens"),
    *("num_predict", "n_predict", "max_gen_toks", "max_gen_len", "max_tokens_to_sample", "max_gen_tokens"),
)
"""Fields of how many tokens a completion may have."""

# Names that are not in the tables count by their words, and then only where they hold one of `LIMITS`.
_OF_END = frozenset(
    (
        *("finish", "finished", "stop", "stopped", "stopping", "done", "completion", "termination", "terminated"),
        *("end", "ended", "generation", "response"),
    )
)
_OF_REASON = frozenset(("reason", "type", "status", "condition", "cause", "by", "criteria", "criterion"))
_OF_CUT = frozenset(("truncated", "cutoff", "overlong"))
_OF_LIMIT = frozenset(("limit", "length", "max", "tokens", "budget"))
_OF_REACHED = frozenset(("exceeded", "reached", "hit"))
_OF_OTHERS = frozenset(("prompt", "input", "question", "context", "document", "rate", "cost"))
"""What else may be truncated, or have a limit."""
_ALONE = ("status", "finish", "termination", "reason")
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_LONGEST_WORD = 60
_NESTED = 4
"""Levels of objects beside the text."""
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"[a-z]+|[A-Z][a-z]*")


@dataclass(frozen=True, slots=True)
class Ending:
    """How a completion ended."""

    reason: FinishReason
    doubt: str | None = None
    """What a user should hear of how it was read."""


STOP = Ending("stop")
CUT = Ending("length")
AT_LIMIT = Ending("length", "no finish reason, and as many tokens as the limit allows: counts as cut off")


def ending(objects: Sequence[Mapping[str, Any]]) -> Ending:
    """How a completion ended, as the objects around its text say it."""
    around = [fields for outer in objects for fields in _within(outer)]
    found = [said for fields in around for said in _said(fields)]
    if CUT in found:
        return CUT
    if STOP in found:
        return STOP
    if found:
        return found[0]
    return STOP if _numbers(around, COUNT_FIELDS).isdisjoint(_numbers(around, LIMIT_FIELDS)) else AT_LIMIT


def _within(fields: Mapping[str, Any], depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield an object and those that its wrappers hold."""
    yield fields
    for name in WRAPPERS if depth < _NESTED else ():
        value = fields.get(name)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, dict):
            yield from _within(value, depth + 1)


def _said(fields: Mapping[str, Any]) -> Iterator[Ending]:
    for name, value in fields.items():
        if value is None or value in ("", {}, []):
            continue
        if name in REASON_FIELDS:
            yield _of_word(value)
        elif (name in CUT_FLAGS and _flag(value) is True) or (name in END_FLAGS and _flag(value) is False):
            yield CUT
        elif not isinstance(value, Number) and _flag(value) is True and _tells_cut(name):
            # A number in a field that is in no table may count something.
            yield CUT
        elif is_text(value) and len(value) < _LONGEST_WORD and _tells_end(name) and _plain(value) in LIMITS:
            yield CUT


def _numbers(around: Iterable[Mapping[str, Any]], names: Iterable[str]) -> set[str]:
    """The numbers that fields of these names hold, as they are written."""
    values = [fields[name] for fields in around for name in names if name in fields]
    return {str(value) for value in values if isinstance(value, Number) and value.isdecimal() and value != "0"}


@lru_cache(maxsize=4096)
def _tells_cut(name: str) -> bool:
    """Whether a name that is in no table may be that of a flag which is true where a completion was cut off."""
    words = {word.lower() for word in _WORD.findall(name)}
    is_cut = not words.isdisjoint(_OF_CUT) or not (words.isdisjoint(_OF_LIMIT) or words.isdisjoint(_OF_REACHED))
    return is_cut and words.isdisjoint(_OF_OTHERS)


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
        return _not_known(shown(value) if isinstance(value, Number) else kind(value))
    known = _known(value)
    return _not_known(f"'{shown(value)}'") if known is None else STOP if known == "stop" else CUT


def _not_known(reason: str) -> Ending:
    return Ending("length", f"finish reason {reason} is not known, and counts as cut off")


def _known(word: str) -> FinishReason | None:
    word = _plain(word)
    return FINISH_REASONS.get(word) or FINISH_REASONS.get(word.removeprefix("finish_reason_"))


def _plain(word: str) -> str:
    """A word as the tables write it; enumerations write themselves as `FinishReason.STOP`, tokens as `<|im_end|>`."""
    return _HUMP.sub("_", word.strip("<|/> \n").rpartition(".")[2]).lower().replace("-", "_").replace(" ", "_")
