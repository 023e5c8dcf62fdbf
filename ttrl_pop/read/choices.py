"""The choices of a multiple-choice question → labels and texts, in the layouts that data sets have.

| layout | |
|---|---|
| `{"A": "3", "B": "4"}` | in one of `CHOICE_FIELDS` |
| `["3", "4"]`, `["A) 3", "B) 4"]`, lines of a text | labels as they stand, else letters |
| `"A) 3 B) 4"`, `"(A) 3, (B) 4"` | a text whose letters run in order, all with the same marks |
| `"['3', '4']"` | a list as a data frame writes it |
| `{"label": ["A", "B"], "text": ["3", "4"]}` | ARC |
| `[{"label": "A", "text": "3"}, …]`, `[{"A": "3"}, …]`, `[["A", "3"], …]` | |
| `"A": "3", "B": "4"` | a field each, named as in `SERIES` |
"""

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from ttrl_pop.read.rows import Row, is_text, spelling

CHOICE_FIELDS = (
    *("choices", "options", "Choices", "Options", "answer_choices"),
    *("mc_options", "endings", "question.choices"),
)
"""Fields of all choices, in the order in which they count."""

SERIES = (
    *("{}", "option_{}", "option{}", "Option {}", "option {}", "Option{}", "Option_{}", "opt{}", "op{}"),
    *("choice_{}", "choice{}", "Choice {}", "choice {}", "ending{}", "ending_{}"),
)
"""Names of the fields of one choice each, without their letters or numbers."""

_COUNTED = (ascii_uppercase, ascii_lowercase, "123456789", "0123456789")
# A lone letter is a name in capitals only.
_SERIES = tuple(
    (counted, tuple(map(name.format, counted)))
    for name in SERIES
    for counted in (_COUNTED[:1] if name == "{}" else _COUNTED)
)
_MOST_WORDS = 5
"""Words before an answer, such as `option`, that are passed over."""
_LONGEST = 10_000
"""Characters of a list that is written as text."""
_LABELS = ("label", "labels", "key", "letter", "id")
_TEXTS = ("text", "texts", "value", "content", "option", "choice")
_LABELLED = re.compile(r"\s*+(?:\(([A-Za-z0-9])\)|([A-Za-z0-9])[).:])\s*+(.*)", re.DOTALL)
_INLINE = tuple(
    re.compile(rf"(?:(?<=\s)|^){opened}([{letters}]){closed}\s*+")
    for letters in ("A-Z", "a-z")
    for opened, closed in ((r"\(", r"\)"), ("", r"\)"), ("", r"\."), ("", ":"))
)
"""Letters in a text, each with the same marks."""
_JOINED = re.compile(r"\s+(?:and|or)$")
_SEPARATORS = ",;|/"
_WORDS = re.compile(r"(?:option|choice|answer)\s++", re.IGNORECASE)
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
_MARKS = ("{}. {}", "{}) {}", "{}: {}", "{}.{}", "{}){}", "{}:{}", "{} {}", "{} - {}")


@dataclass(frozen=True, slots=True)
class Choices:
    """Choices of one question."""

    fields: tuple[str, ...]
    """Fields of the row that they stand in."""
    labels: tuple[str, ...]
    """What the choices are called: letters or numbers, no two alike."""
    texts: tuple[str, ...]
    labelled: bool = True
    """Whether the row says the labels; else they are letters that are given to its list."""

    def lines(self) -> str:
        """A line for each, as it is put below a question."""
        return "\n".join(f"{label}. {text}" for label, text in zip(self.labels, self.texts, strict=True))

    def stand_in(self, question: str) -> bool:
        """Whether a text lists them already."""
        return all(
            any(mark.format(label, text) in question for mark in _MARKS)
            for label, text in zip(self.labels, self.texts, strict=True)
        )

    def label_of(self, answer: str) -> str | None:
        """The label of the choice that an answer means by its label (`B`, `b`, `(B)`, `B. 4`) or its text, with or
        without words before it."""
        for _ in range(_MOST_WORDS):
            answer = answer.strip(" $\n")
            if match := _TEXT.fullmatch(answer):
                answer = match[1].strip()
            if (label := self._said(answer)) is not None:
                return label
            if (match := _WORDS.match(answer)) is None:
                break
            answer = answer[match.end() :]
        return self._labelled(answer)

    def _said(self, answer: str) -> str | None:
        """The label of the choice that an answer is the label or the text of."""
        if (label := self._same_label(answer)) is not None:
            return label
        # As it is written first: choices may differ in their capital letters alone.
        for spelled in (_in_one_line, _plain):
            texts = [spelled(text) for text in self.texts]
            if texts.count(spelled(answer)) == 1:
                return self.labels[texts.index(spelled(answer))]
        return None

    def _labelled(self, answer: str) -> str | None:
        """The label that stands before a mark, and before the text of its own choice or none."""
        if match := _LABELLED.fullmatch(answer):
            label = self._same_label(match[1] or match[2])
            if label is not None and (not match[3] or _plain(match[3]) == _plain(self.texts[self.labels.index(label)])):
                return label
        return None

    def at(self, place: int) -> str | None:
        """The label of the choice at a place, counted from 0; None where there is none."""
        return self.labels[place] if 0 <= place < len(self.labels) else None

    def _same_label(self, label: str) -> str | None:
        return next((label for label in (label, label.upper()) if label in self.labels), None)


def choices_of(row: Row) -> Choices | None:
    """The choices of a row's question; None where it has none, or as free text.

    Raises:
        UsageError: there are some that cannot be read.
    """
    for field, value in row.present(CHOICE_FIELDS):
        if is_text(value):
            value = _listed(value)
        if value in ([], {}, None):
            continue
        found = _choices(field, value)
        if found is None or len(set(found.labels)) < len(found.labels):
            raise row.error(
                f"{field} are choices that cannot be read. Make them a list of texts, or an object from each letter to "
                "its text."
            )
        return found
    return next(
        filter(None, (_series(row, counted, names) for counted, names in _SERIES if names[1] in row.fields)), None
    )


def _series(row: Row, counted: str, names: Sequence[str]) -> Choices | None:
    """Choices in a field each; None where there is one, or none."""
    texts = [text for name in names if (text := spelling(row.fields.get(name))) is not None and text.strip()]
    is_gapless = all(spelling(row.fields.get(name)) is not None for name in names[: len(texts)])
    if len(texts) < 2 or not is_gapless:
        return None
    fields = tuple(name for name in names if name in row.fields)
    labels = tuple(label.upper() for label in counted[: len(texts)])
    return Choices(fields, labels, tuple(text.strip() for text in texts))


def _choices(field: str, value: Any) -> Choices | None:
    if isinstance(value, list):
        if all(isinstance(item, list) and len(item) == 2 for item in value):
            return _of_pairs(field, [(label, text) for label, text in value])
        if all(isinstance(item, dict) and not any(key in item for key in _LABELS) for item in value):
            if all(len(item) == 1 and not any(key in item for key in _TEXTS) for item in value):
                return _of_pairs(field, [pair for item in value for pair in item.items()])
            value = [_first(_TEXTS, item) for item in value]
        if all(isinstance(item, dict) for item in value):
            return _of_pairs(field, [(_first(_LABELS, item), _first(_TEXTS, item)) for item in value])
        while value and value[-1] in (None, ""):
            value = value[:-1]
        texts = [spelling(item) for item in value]
        return _of_texts(field, [text for text in texts if text is not None]) if None not in texts else None
    if isinstance(value, dict):
        labels, texts = _first(_LABELS, value), _first(_TEXTS, value)
        if isinstance(labels, list) and isinstance(texts, list) and len(labels) == len(texts):
            return _of_pairs(field, list(zip(labels, texts, strict=True)))
        return _of_pairs(field, [(label, text) for label, text in value.items() if text is not None])
    return None


def _listed(text: str) -> list[str] | None:
    """The lines, the list or the row that a text of choices writes; None for free text."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2 and (found := _in_a_row(text.strip())) is not None:
        return found
    if lines and all(map(_LABELLED.fullmatch, lines)):
        return lines
    if text.startswith("[") and len(text) < _LONGEST:
        # As a data frame writes a list.
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(text)
            if isinstance(value, list) and all(isinstance(item, str) for item in value):
                return value
    return None


def _in_a_row(text: str) -> list[str] | None:
    """The choices that one line writes, each with its letter; None where letters do not run in order."""
    for pattern in _INLINE:
        marks = list(pattern.finditer(text))
        labels = "".join(mark[1] for mark in marks)
        if (
            len(marks) < 2
            or marks[0].start()
            or labels not in (ascii_uppercase[: len(marks)], ascii_lowercase[: len(marks)])
        ):
            continue
        ends = [*(mark.start() for mark in marks[1:]), len(text)]
        texts = [text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
        texts[-2] = _JOINED.sub("", texts[-2])
        last = {each[-1:] for each in texts[:-1]}
        if len(last) == 1 and last <= set(_SEPARATORS):
            texts[:-1] = [each[:-1].strip() for each in texts[:-1]]
        if all(texts):
            return [f"{label}) {each}" for label, each in zip(labels, texts, strict=True)]
    return None


def _of_pairs(field: str, pairs: Sequence[tuple[Any, Any]]) -> Choices | None:
    labels = [spelling(label) for label, _ in pairs]
    texts = [spelling(text) for _, text in pairs]
    if None in labels or None in texts or not all(labels):
        return None
    names = [str(label).strip() for label in labels]
    if all(name in ascii_lowercase for name in names):
        names = [name.upper() for name in names]
    return Choices((field,), tuple(names), tuple(str(text).strip() for text in texts))


def _of_texts(field: str, texts: Sequence[str]) -> Choices | None:
    matches = [_LABELLED.fullmatch(text) for text in texts]
    if all(matches):
        labels = [match[1] or match[2] for match in matches if match]
        if [label.upper() for label in labels] in (list(counted[: len(labels)]) for counted in _COUNTED):
            return _of_pairs(field, [(label, match[3]) for label, match in zip(labels, matches, strict=True) if match])
    if len(texts) > len(ascii_uppercase):
        return None
    letters = tuple(ascii_uppercase[: len(texts)])
    return Choices((field,), letters, tuple(text.strip() for text in texts), labelled=False)


def _first(fields: Iterable[str], value: Mapping[str, Any]) -> Any:
    return next((value[field] for field in fields if value.get(field) is not None), None)


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


def _plain(text: str) -> str:
    return _in_one_line(text).casefold().removesuffix(".").strip("$")
