"""Read rollouts that something else made: rows of JSON → the group of each problem, as soon as its last row is seen.

    for group in read_rollouts("rollouts.jsonl", Layout()):
        tally = vote(group, rules)

A row holds one rollout, or a problem's completions in a list. Of `TEXT_FIELDS` and of `PROBLEM_ID_FIELDS` the first
that a row has counts. A completion is text, a list of chat messages (its last assistant turn), or an object with such
a text, as the `choices` of an OpenAI-style reply are. Beside the text may stand, all optional:

| field | |
|---|---|
| `finish_reason` | `FINISH_REASONS`; null is `stop` |
| `mind` | seed of the mind that wrote it; without one it counts as a mind of its own |
| `logprobs` or `mean_logprob` | of its tokens, nats |
| `completion_ids` or `token_ids` | its tokens |
| `form` | `raw` or `chat`: the kind of prompt, which decides how the answer is read |

What `ttrl-pop sample` writes and what a run keeps in RUN/rollouts are such rows.

Simplifications:

1. The prompt is not read: a group's problem has its id and the kind of its prompt.
2. A lone surrogate in a text becomes U+FFFD, as no tokenizer could have written it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ttrl_pop.read.rows import ID_FIELDS, ByteStream, Number, Row, is_text, joined, kind, read_rows
from ttrl_pop.text import shown
from ttrl_pop.types import FinishReason, Group, Message, Mind, Problem, Rollout

PROBLEM_ID_FIELDS = ("problem_id", "question_id", "prompt_id", *ID_FIELDS)
"""A plain `id` comes later: beside one of the first three it is that of the rollout."""
TEXT_FIELDS = (
    *("text", "completion", "response", "output", "generation", "generated_text"),
    *("completions", "responses", "outputs", "generations", "samples", "messages", "choices"),
)
"""Fields of a completion, or of a list of them."""
FINISH_REASONS: Mapping[str, FinishReason] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence", "tool_calls"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "max_length", "max_new_tokens", "content_filter", "abort"), "length"),
}
"""Others' words for an end that was reached, and for a completion that was cut off."""

_INSIDE = ("message", *TEXT_FIELDS, "content")
_BESIDE = ("finish_reason", "mind", "logprobs", "mean_logprob", "completion_ids", "token_ids")
_NESTED = 4
"""Levels of objects that a text may stand in."""
_ROUNDING = 1e-3
"""How far above 0 a log-probability may lie, as rounding leaves it there."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How rollouts are laid out in their rows."""

    id_key: str | None = None
    """Field of the problem's id; None detects it."""
    text_key: str | None = None
    """Field of the completion; None detects it."""
    form: Literal["auto", "chat", "raw"] = "auto"
    """What the prompts were; `auto` asks the rows' field `form`, and takes `chat` without one."""
    shuffled: bool = False
    """Whether rows of a problem may stand apart; all rollouts are then held until the last row is read."""


def read_rollouts(source: str, layout: Layout, stdin: ByteStream | None = None) -> Iterator[Group]:
    """Yield the group of each problem in `source`, a file or `-`, in the order of their first rows.

    Args:
        stdin: standard input, in bytes; None is that of the process.

    Raises:
        UsageError: the source cannot be read or a row breaks a rule, also that the rows of a problem stand together
            (unless `shuffled`); the message begins with file and line.
    """
    seen: set[str] = set()
    held: dict[str, tuple[Problem, list[Rollout]]] = {}
    for row in read_rows(source, stdin):
        place, completions = _completions(row, layout)
        problem_id = _problem_id(row, layout, isinstance(completions, list))
        if problem_id not in held:
            if not layout.shuffled:
                if problem_id in seen:
                    raise row.error(
                        f"problem '{shown(problem_id)}' came before, and others after it. Sort the rows by problem, "
                        "or pass --shuffled, which holds all of them in memory."
                    )
                yield from _groups(held)
                held.clear()
            held[problem_id] = (Problem(problem_id, _no_prompt(row, layout), len(seen)), [])
            seen.add(problem_id)
        problem, rollouts = held[problem_id]
        if problem.prompt != _no_prompt(row, layout):
            raise row.error(f"form is another than before for problem '{shown(problem_id)}'. Pass --raw or --chat.")
        if isinstance(completions, list):
            for number, completion in enumerate(completions):
                fields = _beside(row, completion, number, len(completions))
                rollouts.append(_rollout(row, f"{place}[{number}]", completion, fields, len(rollouts)))
        else:
            rollouts.append(_rollout(row, place, completions, row.fields, len(rollouts)))
    yield from _groups(held)


def _groups(held: Mapping[str, tuple[Problem, list[Rollout]]]) -> Iterator[Group]:
    for problem, rollouts in held.values():
        yield Group(problem, tuple(rollouts))


def _completions(row: Row, layout: Layout) -> tuple[str, Any]:
    """Name of the text field, and what it holds: a list where that is one of several completions.

    Raises:
        UsageError: there is no such field, or no completion in it.
    """
    field, value = row.first((layout.text_key,) if layout.text_key else TEXT_FIELDS)
    if field is None:
        key = f" {shown(layout.text_key)}" if layout.text_key else ""
        raise row.error(f"no text field{key} (found: {row.listed()}). Name it with --text-key.")
    if value == []:
        raise row.error(f"{shown(field)} holds no completion. Leave the row out.")
    if isinstance(value, list) and all(isinstance(item, dict) and "role" in item for item in value):
        return shown(field), {"messages": value}
    return shown(field), joined(value)


def _problem_id(row: Row, layout: Layout, is_whole: bool) -> str:
    """The id of a row's problem; of a row that holds all of a problem, its number where it has none."""
    problem_id = row.id((layout.id_key,) if layout.id_key else PROBLEM_ID_FIELDS)
    if problem_id is not None:
        return problem_id
    if layout.id_key or not is_whole:
        key = f" {shown(layout.id_key)}" if layout.id_key else ""
        raise row.error(f"no problem id{key} (found: {row.listed()}). Name its field with --id-key.")
    return str(row.number)


def _no_prompt(row: Row, layout: Layout) -> str | tuple[Message, ...]:
    """A prompt of the kind that the rollouts answer."""
    form = layout.form if layout.form != "auto" else row.fields.get("form")
    return "" if form == "raw" else ()


def _beside(row: Row, completion: Any, number: int, count: int) -> dict[str, Any]:
    """What belongs to one of a row's completions: in its own object, or in a list of as many in the row.

    Raises:
        UsageError: a list of another length.
    """
    fields = {name: value for name in _BESIDE if (value := row.fields.get(name)) is not None}
    for name, value in fields.items():
        if isinstance(value, list):
            if len(value) != count:
                raise row.error(f"{name} must hold one element for each of the {count} completions, got {len(value)}.")
            fields[name] = value[number]
    return fields | (completion if isinstance(completion, dict) else {})


def _rollout(row: Row, place: str, completion: Any, fields: Mapping[str, Any], number: int) -> Rollout:
    ids = fields.get("completion_ids", fields.get("token_ids"))
    return Rollout(
        mind=Mind(-1 - number) if fields.get("mind") is None else Mind(_whole(row, "mind", fields["mind"])),
        prompt_ids=(),
        completion_ids=tuple(_whole(row, "a token id", token) for token in _listed(row, "completion_ids", ids)),
        logprobs=_logprobs(row, fields),
        text=_text(row, place, completion),
        finish_reason=_finish_reason(row, fields.get("finish_reason")),
        policy_version=0,
    )


def _text(row: Row, place: str, value: Any) -> str:
    """The text in a completion: itself, or what its objects and turns of the assistant lead to.

    Raises:
        UsageError: there is no text in `value`.
    """
    for _ in range(_NESTED):
        value = joined(value)
        if isinstance(value, list):
            turns = [turn for turn in value if isinstance(turn, dict) and turn.get("role") == "assistant"]
            if not turns:
                raise row.error(f"{place} must be text, or chat messages with a turn of the assistant.")
            value = turns[-1]
        elif isinstance(value, dict):
            # A reply without content is one that says nothing: a refusal, a call of a tool, thoughts cut off.
            silent = "" if any(key in value for key in _INSIDE) else None
            value = next((value[key] for key in _INSIDE if value.get(key) is not None), silent)
            if value is None:
                raise row.error(f"{place} has no text. Give it one of text, message and content.")
    if not is_text(value):
        raise row.error(f"{place} must be text, got {kind(value)}.")
    return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _finish_reason(row: Row, value: Any) -> FinishReason:
    reason = "stop" if value is None else FINISH_REASONS.get(value.lower()) if is_text(value) else None
    if reason is None:
        found = f"'{shown(value)}'" if is_text(value) else kind(value)
        raise row.error(f"finish_reason must be stop, or length where the completion was cut off, got {found}.")
    return reason


def _logprobs(row: Row, fields: Mapping[str, Any]) -> tuple[float, ...]:
    """Log-probabilities of the tokens, or their mean alone; `{"content": [{"logprob": …}]}` is OpenAI's form."""
    values = fields.get("logprobs")
    if isinstance(values, dict):
        values = values.get("content")
    if values is None and fields.get("mean_logprob") is not None:
        values = [fields["mean_logprob"]]
    return tuple(_logprob(row, value) for value in _listed(row, "logprobs", values))


def _logprob(row: Row, value: Any) -> float:
    value = value.get("logprob") if isinstance(value, dict) else value
    if not isinstance(value, Number) or not -math.inf < (number := float(value)) <= _ROUNDING:
        found = f"{shown(value)}" if isinstance(value, Number) else kind(value)
        raise row.error(f"a log-probability must be a number that is not above 0, got {found}.")
    return number


def _listed(row: Row, name: str, value: Any) -> list[Any]:
    if not isinstance(value, list | None):
        raise row.error(f"{name} must be a list, got {kind(value)}.")
    return value or []


def _whole(row: Row, name: str, value: Any) -> int:
    # No seed and no token is longer, and Python reads no number of any length.
    if not isinstance(value, Number) or len(value) > 19 or not value.isdecimal():
        found = shown(value) if isinstance(value, Number) else kind(value)
        raise row.error(f"{name} must be a whole number from 0, got {found}.")
    return int(value)
