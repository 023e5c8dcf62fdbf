r"""A row → its prompt, with no part of the question lost.

Of `PROMPT_FIELDS` the first that a row has is the question; a list is a chat, any text becomes a user turn with
`INSTRUCTION` below it, and a text named `prompt` is raw: the model continues it. What else belongs to the question is
put to it, with blank lines between:

| fields | become |
|---|---|
| `SYSTEM_FIELDS` | a system turn; of a raw prompt its beginning |
| `HISTORY_FIELDS` | turns before the question; of a raw prompt text above it |
| `TASK_FIELDS`, `CONTEXT_FIELDS` | text above the question, in this order |
| choices (`ttrl_pop.read.choices`) | a line for each below the question, with its letter |

What the question holds already is not put to it twice. A part that is no text refuses the row. Fields that are left are
no part of a question where the last word of their name is in `NO_PART`; any other is named to the user as not read.

A prompt field that the user names is the whole prompt, and a chat takes a system turn at most: what else would be put
to them is named as not read.
"""

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ttrl_pop.config import ProblemsConfig
from ttrl_pop.read.chat import CONTENT_FIELDS, ROLE_FIELDS, is_chat, joined, part_text, role_of
from ttrl_pop.read.choices import CHOICE_FIELDS, choices_of
from ttrl_pop.read.gold import GOLD_FIELDS
from ttrl_pop.read.rows import ID_FIELDS, Row, is_text, kind, spelling
from ttrl_pop.text import shown
from ttrl_pop.types import Message

TASK_FIELDS = ("instruction", "instructions", "Instruction", "task_prompt")
"""Fields of what is to be done with the question."""

PROMPT_FIELDS = (
    *("problem", "question.stem", "question", "prompt", "Problem", "Question", "input", "query", "messages"),
    *("conversations", "conversation", "chat", "contents", "body.messages", "body.input", "params.messages"),
    *("request.messages", "request.contents", "problem_statement", "Input", "Query", "Prompt", "stem"),
    *TASK_FIELDS,
)
"""Fields of a question, in the order in which they count."""

CONTEXT_FIELDS = (
    *("context", "contexts", "Context", "passage", "passages", "Passage", "paragraph", "background", "document"),
    *("documents", "article", "story", "premise", "scenario", "situation", "excerpt", "table", "body", "Body"),
    *("problem_context", "preamble"),
)
"""Fields of what a question is about."""

SYSTEM_FIELDS = (
    *("system", "system_prompt", "system_message", "body.instructions", "params.system"),
    *("systemInstruction.parts", "request.systemInstruction.parts"),
)
"""Fields of what a system turn says."""

HISTORY_FIELDS = ("history", "chat_history", "dialogue_history", "conversation_history")
"""Fields of turns before the question: pairs of question and answer, or turns of a chat."""

NO_PART = frozenset(
    (
        *("id", "ids", "idx", "index", "uid", "uuid", "hash", "sha", "answer", "answers", "gold", "label"),
        *("labels", "target", "truth", "solution", "solutions", "rationale", "reason", "reasoning"),
        *("explanation", "exp", "cot", "thought", "thoughts", "proof", "derivation", "output", "outputs"),
        *("response", "responses", "completion", "completions", "generation", "generations", "prediction"),
        *("predictions", "rollout", "rollouts", "chosen", "rejected", "source", "sources", "dataset"),
        *("split", "subset", "level", "difficulty", "rating", "subject", "subjects", "topic", "topics"),
        *("domain", "category", "categories", "subcategory", "type", "tag", "tags", "skill", "skills"),
        *("ability", "grade", "concept", "concepts", "competition", "contest", "exam", "year", "created"),
        *("updated", "timestamp", "author", "annotator", "url", "link", "license", "copyright", "version"),
        *("model", "models", "engine", "reward", "score", "scores", "correct", "correctness", "accuracy"),
        *("agent", "metadata", "meta", "extra", "token", "tokens", "step", "steps", "seed", "cluster"),
        *("quality", "verified", "verify", "valid", "aliases"),
    )
)
"""Last words in the names of fields that are no part of a question."""

INSTRUCTION = r"Please reason step by step, and put your final answer in \boxed{}."
"""Stands below a text that becomes a chat turn, after a blank line."""

_WORD = re.compile(r"[a-z]+|[A-Z]+(?![a-z])|[A-Z][a-z]+")
_NO_PART_NAMES = ("extra_info", "created_at", "updated_at", "method")
_WRONG = frozenset(("incorrect", "wrong", "distractor", "false"))
"""Words for choices beside the right one, which belong to the question."""
_USUAL_FIELDS = ("problem", "question", "prompt", "messages")
_UNSAID = ("weight", "loss", "loss_mask", "loss_weight", "train", "id", "index", "timestamp")
"""Fields of a turn that tell trainers something, and not the model."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a row asks."""

    prompt: str | tuple[Message, ...]
    unread: tuple[str, ...]
    """Fields that may be a part of it and are not in the prompt."""


def read_question(row: Row, options: ProblemsConfig) -> Question:
    """Read the prompt of a row.

    Raises:
        UsageError: there is none, or a part of it cannot be read.
    """
    field, value = _main(row, options.prompt_key)
    if isinstance(value, list):
        return _chat_question(row, field, value, options)
    if not is_text(value) or field.endswith("messages"):
        wanted = "a list of messages" if field.endswith("messages") else "text or a list of messages"
        raise row.error(f"prompt field {shown(field)} must be {wanted}, got {kind(value)}.")
    if not value.strip():
        raise row.error(f"prompt field {shown(field)} is empty. Fill it or leave the row out.")
    text, used = (str(value), [field]) if options.prompt_key else _whole(row, field, str(value))
    if options.prompt_template:
        text = options.prompt_template.replace("{prompt}", text)
    row.check_encodable("prompt", text)
    turns = []
    if not options.prompt_key:
        for name, turn in _before(row):
            used.append(name)
            if turn["role"] != "system" or not _holds(text, turn["content"]):
                turns.append(turn)
    unread = _unread(row, used, text)
    # Demos and few-shot prompts are text to be continued, and end where the model is to go on.
    if options.form == "raw" or (options.form == "auto" and field == "prompt"):
        return Question("\n\n".join([*(turn["content"] for turn in turns), text]), unread)
    return Question((*turns, *as_turn(text)), unread)


def as_turn(text: str) -> tuple[Message, ...]:
    """A question as a chat: one turn of the user, with the instruction below it."""
    return ({"role": "user", "content": f"{text}\n\n{INSTRUCTION}"},)


# --- the question and what is put to it ---


def _main(row: Row, key: str | None) -> tuple[str, Any]:
    """The field of the question, and what it holds; an empty `input` beside an instruction is none."""
    found = row.present((key,) if key else PROMPT_FIELDS)
    for field, value in found:
        is_empty_input = field == "input" and is_text(value) and not value.strip()
        if key or not (is_empty_input and row.first(TASK_FIELDS)[0]):
            return field, value
    raise row.error(_no_prompt(row, key))


def _whole(row: Row, field: str, value: str) -> tuple[str, list[str]]:
    """The text of a question with all that is put above and below it, and the fields it is from."""
    used, above, below = [field], [], []
    for name in (*TASK_FIELDS, *CONTEXT_FIELDS):
        if name != field.partition(".")[0] and (part := _part(row, name)) is not None:
            used.append(name)
            if not _holds(value, part):
                above.append(part)
    if (choices := choices_of(row)) is not None:
        used.extend(choices.fields)
        if not choices.stand_in(value):
            below.append(choices.lines())
    else:
        for name, text in row.present(CHOICE_FIELDS):
            # Free text, as it stands.
            if is_text(text) and text.strip():
                used.append(name)
                below.append(text)
    return "\n\n".join([*above, value, *below]), used


def _part(row: Row, name: str) -> str | None:
    """The text of a part of the question; None where there is none.

    Raises:
        UsageError: it is no text.
    """
    value = joined(row.get(name))
    if value is None or value in ([], {}) or isinstance(value, bool):
        return None
    if (text := _text(value)) is None:
        raise row.error(
            f"{name} is {kind(value)}, which cannot be put to the question. Make it text, or name the whole prompt "
            "with --prompt-key."
        )
    return text if text.strip() else None


def _text(value: Any) -> str | None:
    """A text, a number, or texts in lists; None for anything else."""
    if isinstance(value, list):
        texts = [_text(item) for item in value]
        return None if None in texts else "\n".join(text for text in texts if text)
    return spelling(value)


def _before(row: Row) -> Iterator[tuple[str, Message]]:
    """Turns before the question, with the fields they are from.

    Raises:
        UsageError: there are some that cannot be read.
    """
    for name in SYSTEM_FIELDS:
        if (text := _part(row, name)) is not None:
            row.check_encodable(name, text)
            yield name, {"role": "system", "content": text}
    for name, value in row.present(HISTORY_FIELDS):
        if value in ([], ""):
            continue
        turns = _history(row, name, value)
        if turns is None:
            advice = "Make it a list of pairs of question and answer, or of messages."
            raise row.error(f"{name} are turns that cannot be read. {advice}")
        yield from ((name, turn) for turn in turns)


def _history(row: Row, name: str, value: Any) -> list[Message] | None:
    if is_chat(value):
        return [_message(row, f"{name}[{place}]", turn) for place, turn in enumerate(value)]
    if not isinstance(value, list):
        return None
    said = [text for item in value for text in (item if isinstance(item, list) else [item])]
    if not all(map(is_text, said)) or len(said) % 2:
        return None
    for text in said:
        row.check_encodable(name, text)
    return [{"role": ("user", "assistant")[place % 2], "content": str(text)} for place, text in enumerate(said)]


# --- a chat ---


def _chat_question(row: Row, field: str, values: list[Any], options: ProblemsConfig) -> Question:
    messages = _chat(row, field, values, options)
    used = [field]
    said = "\n\n".join(message["content"] for message in messages)
    if not options.prompt_key:
        for name in SYSTEM_FIELDS:
            if (text := _part(row, name)) is not None and not _holds(said, text):
                if messages[0]["role"] == "system":
                    raise row.error(
                        f"{name} stands beside a chat that has a system turn already. Leave one of them out."
                    )
                row.check_encodable(name, text)
                messages = ({"role": "system", "content": text}, *messages)
                used.append(name)
        choices = choices_of(row)
        if choices is not None and choices.stand_in(said):
            used.extend(choices.fields)
    return Question(messages, _unread(row, used, said))


def _chat(row: Row, field: str, values: list[Any], options: ProblemsConfig) -> tuple[Message, ...]:
    field = shown(field)
    if options.form == "raw":
        raise row.error(f"form raw takes text, but {field} is a list of messages. Leave form at auto.")
    if options.prompt_template is not None:
        raise row.error(f"a prompt template takes text, but {field} is a list of messages. Leave it out.")
    messages = tuple(_message(row, f"{field}[{place}]", value) for place, value in enumerate(values))
    if not any(message["content"].strip() for message in messages):
        raise row.error(f"prompt field {field} is empty. Fill it or leave the row out.")
    if messages[-1]["role"] == "assistant":
        # The usual layout of training data: the solution would stand in the prompt, and every mind would copy it.
        raise row.error(f"{field} ends with an answer of the assistant; a prompt ends with the question. Leave it out.")
    return messages


def _message(row: Row, place: str, value: Any) -> Message:
    if not isinstance(value, dict):
        raise row.error(f"{place} must be an object with role and content, got {kind(value)}.")
    typed = "role" if role_of(value) is None else "type"
    role_field = next((key for key in ROLE_FIELDS if key in value), typed)
    content_field = next((key for key in CONTENT_FIELDS if key in value), "content")
    names = {role_field: "role", content_field: "content"}
    message: Message = {}
    for key, item in value.items():
        name = names[key] if key in names else str(key)
        text = joined(item) if name == "content" else (role_of(value) or item) if name == "role" else item
        if is_text(text):
            row.check_encodable(place, key)
            row.check_encodable(f"{place}.{shown(key)}", text)
            message[name] = str(text)
        elif name == "content" and isinstance(text, list):
            raise row.error(f"{place}.{shown(key)} must be text, got a list{_strange_part(text)}.")
        elif name in ("role", "content") or (text not in (None, [], {}) and key not in _UNSAID):
            raise row.error(f"{place}.{shown(key)} must be text, got {kind(text)}.")
    for key in ("role", "content"):
        if key not in message:
            raise row.error(f"{place} has no {key}. A message is an object with role and content.")
    return message


def _strange_part(parts: list[Any]) -> str:
    """Words for the type of the first part that is no text."""
    part = next((part for part in parts if part_text(part) is None), None)
    said = part.get("type") if isinstance(part, dict) else None
    return f" with a part of type '{shown(said)}'" if is_text(said) else ""


# --- what is not read ---


def _unread(row: Row, used: Iterable[str], text: str) -> tuple[str, ...]:
    """Fields that may be a part of the question and are not in its `text`."""
    roots = {name.partition(".")[0] for name in used}
    return tuple(
        name
        for name, value in row.fields.items()
        if name not in roots
        and not is_no_part(name)
        and value is not None
        and not isinstance(value, bool)
        and value not in ([], {})
        and not (is_text(value) and not value.strip())
        and not _is_in(value, text)
    )


def _is_in(value: Any, text: str) -> bool:
    """Whether a value says no more than `text`, as another form of the same prompt does."""
    if is_chat(value):
        return any(_is_in(joined(turn.get(key)), text) for turn in value for key in CONTENT_FIELDS if turn.get(key))
    said = _text(value)
    return said is not None and _holds(text, said)


def _holds(text: str, part: str) -> bool:
    """Whether a text says a part already; a lone word or number says little by standing in it."""
    return len(part.split()) > 1 and part.strip() in text


@lru_cache(maxsize=4096)
def is_no_part(name: str) -> bool:
    """Whether the name of a field says that it is no part of a question."""
    words = [word.lower() for word in _WORD.findall(name)]
    if words[-1:] == ["answer"] and name[-1].isdigit():
        # One of several, among which to choose.
        return False
    is_known = name.startswith("_") or name in ID_FIELDS or name in GOLD_FIELDS or name in _NO_PART_NAMES
    return is_known or (bool(words) and words[-1] in NO_PART and _WRONG.isdisjoint(words))


def _no_prompt(row: Row, key: str | None) -> str:
    lengths = {
        field: len(value)
        for field, value in row.fields.items()
        if is_text(value) and value.strip() and not is_no_part(field) and field == shown(field)
    }
    if lengths:
        advice = f"Pass --prompt-key {shlex.quote(max(lengths, key=lambda field: lengths[field]))}."
    else:
        advice = f"Give each row one of {', '.join(_USUAL_FIELDS)}."
    return f"no prompt field{' ' + shown(key) if key else ''} (found: {row.listed()}). {advice}"
