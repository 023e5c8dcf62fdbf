r"""Read: a JSON Lines file, a JSON array, standard input or a datasets name → problems and their answer key.

    found = read_problems("problems.jsonl", ProblemsConfig(), gold="gold.jsonl")
    found.problems[0].prompt, found.answers.get("7x8")

Each row is read by itself, so one file may mix layouts. Of `PROMPT_FIELDS`, `GOLD_FIELDS` and `ID_FIELDS` the
first field that is there counts; null is the same as absent, and a list or an object is no gold answer. A
field that the user names is taken instead; a dotted name such as `extra_info.index` reaches into an object.

A string `prompt` stays text, of which `ttrl_pop.model.turns` makes a turn where the model is one for chats; any other
text becomes a user turn with `INSTRUCTION` below it, and a list is a chat. Gold answers go into the `AnswerKey` and
never into a `Problem`.
"""

import hashlib
import json
import shlex
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

from ttrl_pop.config import ProblemsConfig
from ttrl_pop.errors import UsageError
from ttrl_pop.read.hub import DatasetLoader, hub_rows, load_from_hub
from ttrl_pop.read.rows import (
    ID_FIELDS,
    ByteStream,
    Row,
    is_text,
    joined,
    kind,
    read_rows,
    rows_of,
    source_name,
    spelling,
)
from ttrl_pop.text import last_box, shown
from ttrl_pop.types import AnswerKey, Message, Problem, ProblemSet

PROMPT_FIELDS = ("problem", "question", "prompt", "Problem", "Question", "input", "query", "messages")
"""Fields of a prompt, in the order in which they count."""

GOLD_FIELDS = (
    *("answer", "label", "gold", "target", "ground_truth", "final_answer", "Answer", "expected_answer"),
    *("solution", "reward_model.ground_truth"),
)
"""Fields of a gold answer, in the order in which they count."""

INSTRUCTION = r"Please reason step by step, and put your final answer in \boxed{}."
"""Stands below a text that becomes a chat turn, after a blank line."""


def read_problems(
    source: str,
    options: ProblemsConfig,
    gold: str | None = None,
    stdin: ByteStream | None = None,
    *,
    load_dataset: DatasetLoader | None = None,
) -> ProblemSet:
    """Read the problems in `source`: a file, `-` for `stdin`, or `hf:NAME[:config][:split]`.

    Args:
        source: a lone `train`, `test`, `validation` or `dev` after NAME is the split, anything else the
            config; without a split `test` is read, else `train`.
        gold: file with gold answers by problem id; they replace those in the rows.
        stdin: standard input, in bytes; None is that of the process.
        load_dataset: stands in for `datasets.load_dataset`.

    Raises:
        UsageError: a source cannot be read or a row breaks a rule; the message begins with file and line.
    """
    template = options.prompt_template
    if template is not None and template.count("{prompt}") != 1:
        raise UsageError(f"prompt_template must hold {{prompt}} exactly once, got '{shown(template)}'.")
    problems: list[Problem] = []
    answers: dict[str, str] = {}
    seen: dict[str, int] = {}
    gold_fields = (options.answer_key,) if options.answer_key else GOLD_FIELDS
    for row in _read_rows(source, stdin, load_dataset):
        problem_id = _problem_id(row, options.id_key)
        _claim(row, problem_id, seen)
        problems.append(Problem(problem_id, _prompt(row, options), len(problems)))
        if (answer := _gold(row, gold_fields)) is not None:
            answers[problem_id] = answer
    if gold is not None:
        answers |= _read_gold(_read_rows(gold, stdin, load_dataset), options, seen)
    if options.answer_key and not answers:
        raise UsageError(
            f"{source_name(source)}: no row has an answer in {shown(options.answer_key)}. "
            "Pass another --answer-key or none."
        )
    return ProblemSet(tuple(problems), AnswerKey(answers), fingerprint(problems))


def read_gold(source: str, options: ProblemsConfig) -> AnswerKey:
    """Read gold answers by problem id; a file of problems with answers will do.

    Raises:
        UsageError: the source cannot be read or a row breaks a rule; the message begins with file and line.
    """
    return AnswerKey(_read_gold(_read_rows(source, None, None), options, ids=None))


def write_problems(problems: Sequence[Problem]) -> Iterator[str]:
    """One JSON object a problem, without line ends; `read_problems` of these lines gives equal problems.

    That holds for problems as `read_problems` makes them: unique ids, counted from 0, prompts not blank.
    """
    for problem in problems:
        field = "messages" if problem.is_chat else "prompt"
        yield json.dumps({"id": problem.id, field: problem.prompt}, ensure_ascii=False)


def as_turn(text: str) -> tuple[Message, ...]:
    """A question as a chat: one turn of the user, with the instruction below it."""
    return ({"role": "user", "content": f"{text}\n\n{INSTRUCTION}"},)


def fingerprint(problems: Iterable[Problem]) -> str:
    """SHA-256 (hex) over ids and prompts in order."""
    canonical = json.dumps([(problem.id, problem.prompt) for problem in problems], sort_keys=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


# --- source → rows ---


def _read_rows(source: str, stdin: ByteStream | None, load_dataset: DatasetLoader | None) -> Iterator[Row]:
    if source.startswith("hf:"):
        found = hub_rows(source, load_dataset or load_from_hub)
        return rows_of(enumerate(found, 1), source_name(source), "row")
    return read_rows(source, stdin)


# --- row → id, prompt, gold ---


def _claim(row: Row, row_id: str, seen: dict[str, int]) -> None:
    if (number := seen.setdefault(row_id, row.number)) != row.number:
        raise row.error(f"id '{shown(row_id)}' stands on {row.unit} {number} already. Make ids unique.")


def _problem_id(row: Row, key: str | None) -> str:
    row_id = row.id((key,) if key else ID_FIELDS)
    if row_id is None and key:
        raise row.error(f"no id field {shown(key)} (found: {row.listed()}). Pass another --id-key or none.")
    return str(row.number) if row_id is None else row_id


def _prompt(row: Row, options: ProblemsConfig) -> str | tuple[Message, ...]:
    field, value = row.first((options.prompt_key,) if options.prompt_key else PROMPT_FIELDS)
    if field is None:
        raise row.error(_no_prompt(row, options.prompt_key))
    if isinstance(value, list):
        return _chat(row, field, value, options)
    if not is_text(value) or field == "messages":
        wanted = "a list of messages" if field == "messages" else "text or a list of messages"
        raise row.error(f"prompt field {shown(field)} must be {wanted}, got {kind(value)}.")
    if not value.strip():
        raise row.error(f"prompt field {shown(field)} is empty. Fill it or leave the row out.")
    text: str = options.prompt_template.replace("{prompt}", value) if options.prompt_template else value
    row.check_encodable("prompt", text)
    if options.form == "raw" or (options.form == "auto" and field == "prompt"):
        return text
    return as_turn(text)


def _no_prompt(row: Row, key: str | None) -> str:
    lengths = {
        field: len(value)
        for field, value in row.fields.items()
        if is_text(value) and value.strip() and field not in {*ID_FIELDS, *GOLD_FIELDS} and _is_plain(field)
    }
    if lengths:
        advice = f"Pass --prompt-key {shlex.quote(max(lengths, key=lambda field: lengths[field]))}."
    else:
        advice = f"Give each row one of {', '.join(PROMPT_FIELDS)}."
    return f"no prompt field{' ' + shown(key) if key else ''} (found: {row.listed()}). {advice}"


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
    message = {}
    for key, item in value.items():
        text = joined(item) if key == "content" else item
        if is_text(text):
            row.check_encodable(place, key)
            row.check_encodable(f"{place}.{shown(key)}", text)
            message[key] = text
        elif key in ("role", "content") or text not in (None, [], {}):
            raise row.error(f"{place}.{shown(key)} must be text, got {kind(text)}.")
    for key in ("role", "content"):
        if key not in message:
            raise row.error(f"{place} has no {key}. A message is an object with role and content.")
    return message


def _gold(row: Row, fields: Iterable[str]) -> str | None:
    for field, value in row.present(fields):
        text = spelling(value)
        if text is not None and (answer := _final_answer(field, text)):
            row.check_encodable("gold answer", answer)
            return answer
    return None


def _read_gold(rows: Iterable[Row], options: ProblemsConfig, ids: Container[str] | None) -> dict[str, str]:
    id_fields = (options.id_key, *ID_FIELDS) if options.id_key else ID_FIELDS
    fields = (options.answer_key, *GOLD_FIELDS) if options.answer_key else GOLD_FIELDS
    answers: dict[str, str] = {}
    seen: dict[str, int] = {}
    for row in rows:
        if (row_id := row.id(id_fields)) is None:
            raise row.error(f"no problem id (found: {row.listed()}). Give each gold answer the id of its problem.")
        if ids is not None and row_id not in ids:
            raise row.error(f"no problem has the id '{shown(row_id)}'. Correct the id or leave the row out.")
        _claim(row, row_id, seen)
        if (answer := _gold(row, fields)) is None:
            raise row.error(f"no gold answer (found: {row.listed()}). Name its field with --answer-key.")
        answers[row_id] = answer
    return answers


def _final_answer(field: str, text: str) -> str:
    """The answer itself where `text` is a worked solution: its last box, or what follows `####` (GSM8K)."""
    hashes = text.rpartition("####")
    if field == "solution":
        return last_box(text) or (hashes[2].strip() if hashes[1] else "")
    return hashes[2].strip()


def _is_plain(name: str) -> bool:
    return name == shown(name)
