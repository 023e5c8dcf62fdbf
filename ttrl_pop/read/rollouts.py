"""Read rollouts that something else made: rows of JSON → the group of each problem, as soon as its last row is seen.

    for group in read_rollouts("rollouts.jsonl", Layout()):
        tally = vote(group, rules)

A row holds one rollout, or a problem's completions in a list. Of `TEXT_FIELDS` and of `ttrl_pop.read.rows.ID_FIELDS`
the first that a row has counts: `text` is a late one, as beside a `response` it is the prompt. A completion is text, a
list of parts or of chat messages (its last assistant turn), or an object that leads to such a text by `INSIDE`, as the
replies of OpenAI, Anthropic, Gemini, Ollama and others do. Beside the text may stand, all optional:

| field | |
|---|---|
| how it ended | in any of the fields that `ttrl_pop.read.finish` knows |
| `mind` | seed of the mind that wrote it; without one it counts as a mind of its own |
| `logprobs` or `mean_logprob` | of its tokens, nats; others than numbers from `LEAST_LOGPROB` to 0 count as missing |
| `completion_ids` or `token_ids` | its tokens |
| `form` | `raw` or `chat`: the kind of prompt, which decides how the answer is read |

What `ttrl-pop sample` writes and what a run keeps in RUN/rollouts are such rows, and logs of lm-eval and inspect become
such (`ttrl_pop.read.logs`).

Simplifications:

1. The prompt is not read: a group's problem has its id and the kind of its prompt.
2. A lone surrogate in a text becomes U+FFFD, as no tokenizer could have written it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ttrl_pop.errors import UsageError
from ttrl_pop.read.chat import CONTENT_FIELDS, is_parts, is_transcript, role_of, spoken
from ttrl_pop.read.finish import CUT_FLAGS, REASON_FIELDS, ending
from ttrl_pop.read.lines import ByteStream, source_name
from ttrl_pop.read.logs import read_logged
from ttrl_pop.read.question import PROMPT_FIELDS
from ttrl_pop.read.rows import (
    ID_FIELDS,
    Counted,
    Notice,
    Number,
    Refuse,
    Row,
    Source,
    is_text,
    kind,
    refuse,
    unsaid,
)
from ttrl_pop.text import shown
from ttrl_pop.types import Group, Message, Mind, Problem, Rollout

TEXT_FIELDS = (
    *("response", "responses", "completion", "completions", "output", "outputs", "generation", "generations"),
    *("generated_text", "generated_texts", "generated_solution", "generated_solutions", "generated_answer"),
    *("model_output", "model_outputs", "model_response", "model_responses", "model_completion", "model_answer"),
    *("output_text", "outputText", "llm_output", "llm_response", "generated", "prediction", "predictions", "samples"),
    *("resps", "rollouts", "rollout", "trajectory", "reply", "replies", "raw_response", "raw_output"),
    *("candidates", "choices", "message", "messages", "conversations", "conversation", "text", "texts", "content"),
    *("code", "result", "results"),
)
"""Fields of a completion, or of a list of them, in the order in which they count."""

INSIDE = ("message", "delta", *TEXT_FIELDS, "parts", "body", "value")
"""Fields of an object that lead to its text, in the order in which they count."""

LEAST_LOGPROB = -1e6
"""Log-probability below which one is not believed: some engines write -9999 for what cannot be, none writes less."""

_BESIDE = ("mind", "logprobs", "mean_logprob", "completion_ids", "token_ids")
_LISTED = (*_BESIDE, *REASON_FIELDS, *CUT_FLAGS)
"""Fields whose lists hold an element for each completion, or are wrong."""
_EARLY = 100
"""Rows at the beginning of which none can be read, before the layout is taken to be another one."""
_NESTED = 10
"""Levels of objects and lists that a text may stand in."""
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


@dataclass(frozen=True, slots=True)
class _Completion:
    """A text of a row, and all objects that it stands in, the row first."""

    text: str
    objects: tuple[Mapping[str, Any], ...]


def read_rollouts(
    source: Source,
    layout: Layout,
    stdin: ByteStream | None = None,
    *,
    refused: Refuse = refuse,
    notice: Notice = unsaid,
) -> Iterator[Group]:
    """Yield the group of each problem in `source`, a file, `-` or rows in memory, in the order of their first rows.

    Args:
        stdin: standard input, in bytes; None is that of the process.
        refused: gets the error of a row that breaks a rule, once a row could be read; the row is left out where this
            returns.
        notice: is told at the end what was read in a way that may surprise.

    Raises:
        UsageError: the source cannot be read, none of its first rows can be read, or the rows of a problem do not stand
            together (unless `shuffled`); and what `refused` raises. The message begins with file and line.
    """
    seen: set[str] = set()
    held: dict[str, tuple[Problem, list[Rollout]]] = {}
    counted = Counted(source_name(source))

    early: list[UsageError] = []

    def left_out(error: UsageError) -> None:
        if seen:
            refused(error)
        else:
            early.append(error)
            if len(early) == _EARLY:
                raise early[0]

    for row in read_logged(source, stdin, left_out):
        try:
            completions, is_whole = _completions(row, layout, counted)
            problem_id = _problem_id(row, layout, is_whole)
            problem, before = held.get(problem_id, (Problem(problem_id, _no_prompt(row, layout), len(seen)), []))
            rollouts = [_rollout(row, c, len(before) + n, counted) for n, c in enumerate(completions)]
            if problem.prompt != _no_prompt(row, layout):
                raise row.error(f"form is another than before for problem '{shown(problem_id)}'. Pass --raw or --chat.")
        except UsageError as error:
            left_out(error)
            continue
        if problem_id not in held:
            if not layout.shuffled:
                if problem_id in seen:
                    raise row.error(
                        f"problem '{shown(problem_id)}' came before, and others after it. Sort the rows by problem, "
                        "or pass --shuffled, which holds all of them in memory."
                    )
                yield from _groups(held)
                held.clear()
            seen.add(problem_id)
            held[problem_id] = (problem, before)
        before.extend(rollouts)
        while early:
            refused(early.pop(0))
    if early:
        raise early[0]
    yield from _groups(held)
    for said in counted.notices():
        notice(said)


def _groups(held: Mapping[str, tuple[Problem, list[Rollout]]]) -> Iterator[Group]:
    for problem, rollouts in held.values():
        yield Group(problem, tuple(rollouts))


# --- row → completions ---


def _completions(row: Row, layout: Layout, counted: Counted) -> tuple[list[_Completion], bool]:
    """The completions of a row, and whether they are all that its problem has.

    Raises:
        UsageError: there is no field of a text, or no completion in it.
    """
    field, value = _text_field(row, layout, counted)
    place = shown(field)
    found = list(_spread(row, place, spoken(value) if field in CONTENT_FIELDS else value, (), 0))
    if not found:
        raise row.error(f"{place} holds no completion. Leave the row out.")
    is_whole = len(found) > 1 or found[0][0] != place
    for name, listed in row.present(_LISTED if is_whole else ()):
        if isinstance(listed, list) and len(listed) != len(found):
            raise row.error(
                f"{name} must hold one element for each of the {len(found)} completions, got {len(listed)}."
            )
    return [
        _Completion(text, (_beside(row, number, len(found)) if is_whole else row.fields, *objects))
        for number, (_, text, objects) in enumerate(found)
    ], is_whole


def _text_field(row: Row, layout: Layout, counted: Counted) -> tuple[str, Any]:
    """The field of a row's completions, and what it holds."""
    if layout.text_key:
        field, value = row.first((layout.text_key,))
        if field is None:
            raise row.error(f"no text field {shown(layout.text_key)} (found: {row.listed()}). Name it with --text-key.")
        return field, value
    present = list(row.present(TEXT_FIELDS))
    if not present:
        raise row.error(f"no text field (found: {row.listed()}). Name it with --text-key.")
    holding = [(field, value) for field, value in present if _may_hold(field, value)] or present[:1]
    holding = [(field, value) for field, value in holding if value not in ("", [], {})] or holding
    if len(holding) > 1:
        names = ", ".join(field for field, _ in holding[1:])
        counted.add(f"{holding[0][0]} is read, {names} not. --text-key names another field.", row)
    return holding[0]


def _may_hold(field: str, value: Any) -> bool:
    """Whether a value may hold completions: neither a prompt in turns, nor the choices of a question, nor figures."""
    if isinstance(value, dict):
        return any(key in value for key in INSIDE) and not (field == "choices" and "label" in value)
    if not isinstance(value, list):
        return is_text(value)
    if field == "choices":
        return all(isinstance(item, dict) and "label" not in item and len(item) > 1 for item in value)
    return not (is_transcript(value) and all(role_of(turn) != "assistant" for turn in value))


def _spread(
    row: Row, place: str, value: Any, objects: tuple[Mapping[str, Any], ...], depth: int
) -> Iterator[tuple[str, str, tuple[Mapping[str, Any], ...]]]:
    """Yield the place and the text of each completion in a value, and the objects that lead to it.

    Raises:
        UsageError: what should be a text is none.
    """
    if is_text(value):
        # A lone surrogate is half of a pair.
        yield place, str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace"), objects
    elif depth >= _NESTED or not isinstance(value, list | dict):
        raise row.error(f"{place} must be text, got {kind(value)}.")
    elif isinstance(value, dict):
        key = next((key for key in INSIDE if value.get(key) is not None), None)
        if key is None and not any(key in value for key in INSIDE) and role_of(value) != "assistant":
            raise row.error(f"{place} has no text. Give it one of text, message and content.")
        # A reply without content is one that says nothing: a refusal, a call of a tool, thoughts cut off.
        inside = "" if key is None else spoken(value[key]) if key in CONTENT_FIELDS else value[key]
        yield from _spread(row, place, inside, (*objects, value), depth + 1)
    elif is_transcript(value) and not _are_replies(value):
        turns = [turn for turn in value if role_of(turn) == "assistant"]
        if not turns:
            raise row.error(f"{place} must be text, or chat messages with a turn of the assistant.")
        content = next((turns[-1][key] for key in CONTENT_FIELDS if turns[-1].get(key) is not None), "")
        yield from _spread(row, place, spoken(content), (*objects, turns[-1]), depth + 1)
    elif is_parts(value):
        yield from _spread(row, place, spoken(value), objects, depth + 1)
    else:
        for number, item in enumerate(value):
            yield from _spread(row, f"{place}[{number}]", item, objects, depth + 1)


def _are_replies(turns: list[Any]) -> bool:
    """Whether turns are answers to one prompt each: several of the assistant, with no other between them."""
    return len(turns) > 1 and all(role_of(turn) == "assistant" and "type" not in turn for turn in turns)


def _beside(row: Row, number: int, count: int) -> dict[str, Any]:
    """The fields of a row that tell of its completion `number` of `count`: of a list of as many its element."""
    found = {}
    for name, value in row.fields.items():
        if not isinstance(value, list):
            found[name] = value
        elif len(value) == count:
            found[name] = value[number]
    return found


# --- row → problem ---


def _problem_id(row: Row, layout: Layout, is_whole: bool) -> str:
    """The id of a row's problem; of a row that holds all of a problem, its number where it has none."""
    problem_id = row.id((layout.id_key,) if layout.id_key else ID_FIELDS)
    if problem_id is not None:
        return problem_id
    if layout.id_key or not is_whole:
        key = f" {shown(layout.id_key)}" if layout.id_key else ""
        prompt = next((field for field in PROMPT_FIELDS if is_text(row.fields.get(field))), None)
        advice = f", as in --id-key {prompt}" if prompt else ""
        raise row.error(f"no problem id{key} (found: {row.listed()}). Name its field with --id-key{advice}.")
    return str(row.number)


def _no_prompt(row: Row, layout: Layout) -> str | tuple[Message, ...]:
    """A prompt of the kind that the rollouts answer."""
    form = layout.form if layout.form != "auto" else row.fields.get("form")
    return "" if form == "raw" else ()


# --- completion → rollout ---


def _rollout(row: Row, completion: _Completion, number: int, counted: Counted) -> Rollout:
    fields: dict[str, Any] = {}
    for inner in completion.objects:
        fields |= {name: inner[name] for name in _BESIDE if inner.get(name) is not None}
    ids = fields.get("completion_ids", fields.get("token_ids"))
    logprobs = _logprobs(fields)
    if logprobs is None:
        counted.add(f"log-probabilities that are no numbers from {LEAST_LOGPROB:.0f} to 0 count as missing", row)
    ended = ending(completion.objects)
    if ended.doubt is not None:
        counted.add(ended.doubt, row)
    return Rollout(
        mind=Mind(-1 - number) if "mind" not in fields else Mind(_whole(row, "mind", fields["mind"])),
        prompt_ids=(),
        completion_ids=tuple(_whole(row, "a token id", token) for token in _listed(row, "completion_ids", ids)),
        logprobs=logprobs or (),
        text=completion.text,
        finish_reason=ended.reason,
        policy_version=0,
    )


def _logprobs(fields: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Log-probabilities of the tokens, or their mean alone; None where there are some that cannot be read.

    OpenAI's forms are `{"content": [{"logprob": …}]}` and `{"token_logprobs": […]}`.
    """
    values = fields.get("logprobs")
    if isinstance(values, dict):
        values = next((values[key] for key in ("content", "token_logprobs") if values.get(key) is not None), None)
    if values is None and "mean_logprob" in fields:
        values = [fields["mean_logprob"]]
    if not isinstance(values, list | None):
        return None
    found = [_logprob(value) for value in values or ()]
    return None if None in found else tuple(number for number in found if number is not None)


def _logprob(value: Any) -> float | None:
    value = value.get("logprob") if isinstance(value, dict) else value
    if not isinstance(value, Number):
        return None
    number = float(value)
    return number if LEAST_LOGPROB <= number <= _ROUNDING else None


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
