r"""Read: a JSON Lines file, a JSON array, standard input or a datasets name → problems and their answer key.

    found = read_problems("problems.jsonl", ProblemsConfig(), gold="gold.jsonl")
    found.problems[0].prompt, found.answers.get("7x8")

Each row is read by itself, so one file may mix layouts. Of `PROMPT_FIELDS`, `GOLD_FIELDS` and `ID_FIELDS` the
first field that is there counts; null is the same as absent, and a list or an object is no gold answer. A
field that the user names is taken instead; a dotted name such as `extra_info.index` reaches into an object.

A string `prompt` is raw text, any other text becomes a user turn with `INSTRUCTION` below it, and a list is a
chat. Gold answers go into the `AnswerKey` and never into a `Problem`.
"""

import codecs
import hashlib
import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from ttrl_pop.boxes import last_box
from ttrl_pop.config import ProblemsConfig
from ttrl_pop.errors import UsageError
from ttrl_pop.types import AnswerKey, Message, Problem

PROMPT_FIELDS = ("problem", "question", "prompt", "Problem", "Question", "input", "query", "messages")
GOLD_FIELDS = (
    *("answer", "label", "gold", "target", "ground_truth", "final_answer", "Answer", "expected_answer"),
    *("solution", "reward_model.ground_truth"),
)
ID_FIELDS = ("id", "unique_id", "ID", "uid", "problem_idx", "idx", "index")

INSTRUCTION = r"Please reason step by step, and put your final answer in \boxed{}."
"""Stands below a text that becomes a chat turn, after a blank line."""

DatasetLoader: TypeAlias = Callable[[str, str | None, str | None], Iterable[Any]]
"""(name, config, split) → the rows of that split; where it is None, a dict from each split to its rows."""

_SHOWN_FIELDS = 8
_PATH_LIMIT = 4096
_SPLIT = re.compile(r"(test|train|validation|dev)(\[.*\])?")


@runtime_checkable
class ByteStream(Protocol):
    """What standard input has to offer; a `BinaryIO` or a `BytesIO` will do."""

    def read(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """What a source holds."""

    problems: tuple[Problem, ...]
    answers: AnswerKey
    """Gold answers of those problems that have one."""
    fingerprint: str
    """SHA-256 (hex) over ids and prompts in order; gold answers do not enter it."""


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
        raise UsageError(f"prompt_template must hold {{prompt}} exactly once, got '{_shown(template)}'.")
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
            f"{_name(source)}: no row has an answer in {_shown(options.answer_key)}. Pass another --answer-key or none."
        )
    return ProblemSet(tuple(problems), AnswerKey(answers), _fingerprint(problems))


def write_problems(problems: Sequence[Problem]) -> Iterator[str]:
    """One JSON object a problem, without line ends; `read_problems` of these lines gives equal problems.

    That holds for problems as `read_problems` makes them: unique ids, counted from 0, prompts not blank.
    """
    for problem in problems:
        field = "messages" if problem.is_chat else "prompt"
        yield json.dumps({"id": problem.id, field: problem.prompt}, ensure_ascii=False)


class _Number(str):
    """A JSON number as it is spelled: gold 0.50 stays 0.50, and an integer may have any length."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class _Row:
    """One JSON object and where it stands."""

    fields: dict[str, Any]
    file: str
    unit: Literal["line", "element", "row"]
    number: int

    def get(self, key: str) -> Any:
        """The field `key`, else the field that the dots in `key` lead to, else None."""
        value = self.fields.get(key)
        if value is not None or "." not in key:
            return value
        inner: Any = self.fields
        for part in key.split("."):
            inner = inner.get(part) if isinstance(inner, dict) else None
        return inner

    def error(self, message: str) -> UsageError:
        return _error(self.file, self.unit, self.number, message)


def _error(file: str, unit: str, number: int, message: str) -> UsageError:
    place = f"{file}:{number}" if unit == "line" else f"{file}: {unit} {number}"
    return UsageError(f"{place}: {message}")


# --- source → rows ---


def _read_rows(source: str, stdin: ByteStream | None, load_dataset: DatasetLoader | None) -> Iterator[_Row]:
    file = _name(source)
    unit: Literal["line", "element", "row"]
    values: Iterable[tuple[int, Any]]
    if source.startswith("hf:"):
        unit, values = "row", enumerate(_hub_rows(source, load_dataset or _load_from_hub), 1)
    else:
        raw = _read_bytes(source, stdin).removeprefix(codecs.BOM_UTF8)
        if re.match(rb"\s*\[", raw):
            unit, values = "element", enumerate(_parse(raw, file, 1), 1)
        else:
            unit, values = "line", _parse_lines(raw, file)
    number = 0
    for number, value in values:
        if not isinstance(value, dict):
            raise _error(file, unit, number, f"must be a JSON object, got {_kind(value)}.")
        yield _Row(value, file, unit, number)
    if not number:
        raise UsageError(f"{file}: empty. It must hold JSON objects, one on each line or in an array.")


def _name(source: str) -> str:
    return "<stdin>" if source == "-" else _shown(source, limit=_PATH_LIMIT)


def _read_bytes(source: str, stdin: ByteStream | None) -> bytes:
    if source == "-":
        return (stdin or sys.stdin.buffer).read()
    name = _name(source)
    try:
        return Path(source).read_bytes()
    except FileNotFoundError:
        advice = "Check the path." if Path(source).suffix else f"For a dataset of the hub write hf:{name}."
        raise UsageError(f"{name}: no such file. {advice}") from None
    except IsADirectoryError:
        raise UsageError(f"{name}: is a directory. Name a JSON Lines or JSON file in it.") from None
    except OSError as error:
        raise UsageError(f"{name}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise UsageError(f"{name}: cannot be the name of a file ({error}).") from error


def _parse_lines(raw: bytes, file: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(raw.split(b"\n"), 1):
        if line and not line.isspace():
            yield number, _parse(line, file, number)


def _constant(name: str) -> _Number | None:
    # NaN is how data frames spell a value that is missing.
    return None if name == "NaN" else _Number(name)


_DECODER = json.JSONDecoder(parse_int=_Number, parse_float=_Number, parse_constant=_constant)


def _parse(raw: bytes, file: str, first_line: int) -> Any:
    try:
        return _DECODER.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = first_line + raw.count(b"\n", 0, error.start)
        message = f"not valid UTF-8 (byte 0x{raw[error.start]:02x}). Save the file as UTF-8."
        raise UsageError(f"{file}:{line}: {message}") from None
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        reason = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        advice = "Put one whole object on each line, or all of them in one array."
        raise UsageError(f"{file}:{line}: invalid JSON ({reason}). {advice}") from None
    except RecursionError:
        raise UsageError(f"{file}:{first_line}: JSON nested too deeply. Flatten it.") from None


def _hub_rows(source: str, load: DatasetLoader) -> Iterable[Any]:
    name, _, rest = source.removeprefix("hf:").partition(":")
    config, split = ("", rest) if _SPLIT.fullmatch(rest) else rest.partition(":")[::2]
    if not name:
        raise UsageError(f"{_name(source)}: no dataset name. Write hf:NAME[:config][:split].")
    found = load(name, config or None, split or None)
    if not isinstance(found, dict):
        return found
    for default in ("test", "train"):
        if default in found:
            rows: Iterable[Any] = found[default]
            return rows
    splits = ", ".join(map(_shown, found))
    raise UsageError(f"{_name(source)}: no test or train split (found: {splits}). Write hf:NAME:config:split.")


def _load_from_hub(name: str, config: str | None, split: str | None) -> Iterable[Any]:
    place = f"hf:{_shown(name, limit=_PATH_LIMIT)}"
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"{place}: needs the datasets package. Install ttrl-pop[hub].") from error
    try:
        rows: Iterable[Any] = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = _shown(" ".join(str(error).split()), limit=300)
        raise UsageError(f"{place}: cannot be loaded ({reason}).") from error
    return rows


# --- row → id, prompt, gold ---


def _present(row: _Row, fields: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Those of `fields` that are there and not null, with their values."""
    for field in fields:
        if (value := row.get(field)) is not None:
            yield field, value


def _first(row: _Row, fields: Iterable[str]) -> tuple[str | None, Any]:
    return next(_present(row, fields), (None, None))


def _row_id(row: _Row, fields: Iterable[str]) -> str | None:
    field, value = _first(row, fields)
    if field is None:
        return None
    if (row_id := _spelling(value)) is None:
        raise row.error(f"id field {_shown(field)} must be text or a number, got {_kind(value)}.")
    _check_encodable(row, "id", row_id)
    return row_id


def _claim(row: _Row, row_id: str, seen: dict[str, int]) -> None:
    if (number := seen.setdefault(row_id, row.number)) != row.number:
        raise row.error(f"id '{_shown(row_id)}' stands on {row.unit} {number} already. Make ids unique.")


def _problem_id(row: _Row, key: str | None) -> str:
    row_id = _row_id(row, (key,) if key else ID_FIELDS)
    if row_id is None and key:
        raise row.error(f"no id field {_shown(key)} (found: {_listed(row)}). Pass another --id-key or none.")
    return str(row.number) if row_id is None else row_id


def _prompt(row: _Row, options: ProblemsConfig) -> str | tuple[Message, ...]:
    field, value = _first(row, (options.prompt_key,) if options.prompt_key else PROMPT_FIELDS)
    if field is None:
        raise row.error(_no_prompt(row, options.prompt_key))
    if isinstance(value, list):
        return _chat(row, field, value, options)
    if not _is_text(value) or field == "messages":
        wanted = "a list of messages" if field == "messages" else "text or a list of messages"
        raise row.error(f"prompt field {_shown(field)} must be {wanted}, got {_kind(value)}.")
    if not value.strip():
        raise row.error(f"prompt field {_shown(field)} is empty. Fill it or leave the row out.")
    text: str = options.prompt_template.replace("{prompt}", value) if options.prompt_template else value
    _check_encodable(row, "prompt", text)
    if options.form == "raw" or (options.form == "auto" and field == "prompt"):
        return text
    return ({"role": "user", "content": f"{text}\n\n{INSTRUCTION}"},)


def _no_prompt(row: _Row, key: str | None) -> str:
    lengths = {
        field: len(value)
        for field, value in row.fields.items()
        if _is_text(value) and value.strip() and field not in {*ID_FIELDS, *GOLD_FIELDS} and _is_plain(field)
    }
    if lengths:
        advice = f"Pass --prompt-key {shlex.quote(max(lengths, key=lambda field: lengths[field]))}."
    else:
        advice = f"Give each row one of {', '.join(PROMPT_FIELDS)}."
    return f"no prompt field{' ' + _shown(key) if key else ''} (found: {_listed(row)}). {advice}"


def _chat(row: _Row, field: str, values: list[Any], options: ProblemsConfig) -> tuple[Message, ...]:
    field = _shown(field)
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


def _message(row: _Row, place: str, value: Any) -> Message:
    if not isinstance(value, dict):
        raise row.error(f"{place} must be an object with role and content, got {_kind(value)}.")
    message = {}
    for key, item in value.items():
        text = _joined(item) if key == "content" else item
        if _is_text(text):
            _check_encodable(row, place, key)
            _check_encodable(row, f"{place}.{_shown(key)}", text)
            message[key] = text
        elif key in ("role", "content") or text not in (None, [], {}):
            raise row.error(f"{place}.{_shown(key)} must be text, got {_kind(text)}.")
    for key in ("role", "content"):
        if key not in message:
            raise row.error(f"{place} has no {key}. A message is an object with role and content.")
    return message


def _joined(content: Any) -> Any:
    """The text of a list of text parts; anything else as it is."""
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and _is_text(part.get("text")) for part in content
    ):
        return "".join(part["text"] for part in content)
    return content


def _gold(row: _Row, fields: Iterable[str]) -> str | None:
    for field, value in _present(row, fields):
        text = _spelling(value)
        if text is not None and (answer := _final_answer(field, text)):
            _check_encodable(row, "gold answer", answer)
            return answer
    return None


def _read_gold(rows: Iterable[_Row], options: ProblemsConfig, ids: Container[str]) -> dict[str, str]:
    id_fields = (options.id_key, *ID_FIELDS) if options.id_key else ID_FIELDS
    fields = (options.answer_key, *GOLD_FIELDS) if options.answer_key else GOLD_FIELDS
    answers: dict[str, str] = {}
    seen: dict[str, int] = {}
    for row in rows:
        if (row_id := _row_id(row, id_fields)) is None:
            raise row.error(f"no problem id (found: {_listed(row)}). Give each gold answer the id of its problem.")
        if row_id not in ids:
            raise row.error(f"no problem has the id '{_shown(row_id)}'. Correct the id or leave the row out.")
        _claim(row, row_id, seen)
        if (answer := _gold(row, fields)) is None:
            raise row.error(f"no gold answer (found: {_listed(row)}). Name its field with --answer-key.")
        answers[row_id] = answer
    return answers


def _final_answer(field: str, text: str) -> str:
    """The answer itself where `text` is a worked solution: its last box, or what follows `####` (GSM8K)."""
    hashes = text.rpartition("####")
    if field == "solution":
        return last_box(text) or (hashes[2].strip() if hashes[1] else "")
    return hashes[2].strip()


# --- values ---


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, _Number)


def _spelling(value: Any) -> str | None:
    """A scalar as text; None for null, NaN, lists and objects."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and not math.isnan(value)):
        return repr(value)
    return None


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case _Number() | int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "an object"


def _check_encodable(row: _Row, what: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise row.error(
            f"{what} holds the lone surrogate \\u{code:04x}, which tokenizers refuse. "
            "Write the whole pair or leave it out."
        ) from None


def _is_plain(name: str) -> bool:
    return name == _shown(name)


def _shown(text: str, limit: int = 40) -> str:
    """`text` fit for one line of a terminal: what does not print is escaped, what is too long is cut."""
    safe = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text[: limit + 1]
    )
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def _listed(row: _Row) -> str:
    names = [_shown(field) for field, value in row.fields.items() if value is not None]
    return ", ".join(names[:_SHOWN_FIELDS] + ["…"] * (len(names) > _SHOWN_FIELDS)) or "nothing"


def _fingerprint(problems: Iterable[Problem]) -> str:
    canonical = json.dumps([(problem.id, problem.prompt) for problem in problems], sort_keys=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()
