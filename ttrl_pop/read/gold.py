r"""Gold answers in the fields of rows → one text for each problem.

Of `GOLD_FIELDS` the first that holds an answer counts; null and blank are none. A text is read as what it means:

| text | answer |
|---|---|
| holds a box | the last one |
| `<answer>4</answer>`, `<answer>4` | what stands in the last of such tags |
| `… #### 4` (GSM8K) | the line behind the last mark |
| `The answer is 4.`, `Answer: 4`, `答案：4` on its last line, or 4 alone below that | 4 |
| `The sum is 4.` | 4, where it is one sentence that says one thing and ends in a number |
| `**4**` | 4 |
| anything else | itself, a word without its period |

Of `SOLUTION_FIELDS` a text that says no answer has none, unless it is a single word: a worked solution is no answer.

Of a list each element is right, and the first is shown. Beside choices the answer is the label of the one it means, by
label, by text, or by number, and the text of that one is as right. Numbers are read alike in all rows of a source: as
places counted from 0, as texts of choices, or as places counted from 1, the first of these that fits every row.

What is left in doubt is counted, and said once for a source.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ttrl_pop.errors import UsageError
from ttrl_pop.read.choices import Choices, choices_of
from ttrl_pop.read.rows import Row, is_text, spelling
from ttrl_pop.text import last_box, shown
from ttrl_pop.types import GoldAnswer
from ttrl_pop.words import AFTER, ANSWER, BEFORE, any_of, words_of

SOLUTION_FIELDS = ("solution", "Solution")
"""Fields of a worked solution."""

GOLD_FIELDS = (
    *("answer", "label", "gold", "target", "ground_truth", "final_answer", "Answer", "expected_answer"),
    *("answers", "answerKey", "answer_key", "correct_answer", "correct_option", "correct_choice", "gold_answer"),
    *("reference_answer", "Correct Answer", "best_answer", "answer_idx", "answer_index", "correct_index", "cop"),
    *(*SOLUTION_FIELDS, "reward_model.ground_truth"),
)
"""Fields of a gold answer, in the order in which they count."""

OTHERS_FIELD = "others"
"""Field of a list of answers that are as right, beside the one that a run keeps."""

KEPT_FIELDS = {"id", "answer", OTHERS_FIELD}
"""Fields of such a row, and of no other: beside a question `others` may be answers that are wrong."""

PLACE_FIELDS = ("answer_idx", "answer_index", "correct_index", "cop")
"""Gold fields whose numbers are places of choices, never their texts."""

DOUBTS = {
    "none": "no gold answer",
    "unreadable": r"gold that cannot be read as an answer; put it into \boxed{}, or name its field with --answer-key",
    "several": "several gold answers, each of which is right",
    "sentence": r"gold of whole sentences, which only the same words equal; put the answer into \boxed{}",
    "no choice": "gold that is none of the choices",
    "numbers": "gold that is a number, which may be the place of a choice or its text, and counts as none",
}
"""What can be wrong with the gold answers of a source, as a notice says it."""

_INSIDE = ("value", "text", "answer", "ground_truth", "content", "final_answer")
_NESTED = 4
_ADORNMENT = "*_ \t"
_TAGS = re.compile(r"<(/?)(?:answer|final_answer|final)>", re.IGNORECASE)
_SAYS = re.compile(
    rf"""(?<![A-Za-zÀ-ÿ]) (?:{any_of(ANSWER)}) (?:\ (?:to|of|for)\ (?:the|this)\ (?:question|problem))?
    (?:\ (?:{any_of(AFTER)}))?+ [ \t*_]*+ (?:\bis\b|[:：=]) [ \t:*_]*+""",
    re.IGNORECASE | re.VERBOSE,
)
_LEAD = frozenset(("a", "is", "we", *(part for word in words_of(BEFORE) for part in word.split())))
"""Words that may stand before `answer is` on a line that says the answer."""
_VERBS = frozenset(("is", "are", "was", "were", "equals"))
"""Words between what a sentence speaks of and the number that it gives."""
_JOINS = frozenset(("and", "or", "=", ";", "where", "when", "if", "that", "which", "for"))
"""Words by which a sentence says more than one thing."""
_LONGEST_WORD = 60
"""Characters of a solution that is an answer itself."""
_WHOLE_SENTENCE = 3
"""Words from which a text that ends like a sentence is one."""


@dataclass(slots=True)
class Gold:
    """Gold answers of one source, as its rows are read."""

    fields: Sequence[str] = GOLD_FIELDS
    rows: int = 0
    choices: dict[str, Choices] = field(default_factory=dict)
    """By problem id; a row of gold answers alone is read by those of its problem."""
    answers: dict[str, str] = field(default_factory=dict)
    """By problem id; those that are numbers of choices come with `settle`."""
    _numbers: list[tuple[str, tuple[str | None, str | None, str | None]]] = field(default_factory=list)
    """Problem id, and what its number means as a place from 0, as a text, and as a place from 1."""
    _doubts: dict[str, list[str]] = field(default_factory=dict)

    def add(self, row: Row, row_id: str) -> None:
        """Read the gold answer of a row.

        Raises:
            UsageError: it holds half a surrogate pair.
        """
        self.rows += 1
        # Where choices that cannot be read belong to a question, reading it says so.
        with suppress(UsageError):
            if (found := choices_of(row)) is not None:
                self.choices[row_id] = found
        choices = self.choices.get(row_id)
        doubt = "none"
        for name, value in row.present(self.fields):
            scalars = list(_scalars(value))
            texts = [text for scalar in scalars if (text := spelling(scalar)) is not None]
            answers = [answer for text in texts if (answer := final_answer(name, text))]
            if answers and row.fields.keys() == KEPT_FIELDS:
                answers += [str(other) for other in row.fields[OTHERS_FIELD] or () if is_text(other)]
            if answers:
                for answer in answers:
                    row.check_encodable("gold answer", answer)
                if choices is not None and (number := _place(answers)) is not None and number not in choices.labels:
                    self._number(row_id, choices, number, name, is_text(scalars[0]))
                else:
                    self._take(row_id, answers, choices)
                return
            if any(map(str.strip, texts)) or (scalars and not texts):
                doubt = "unreadable"
        self._doubt(doubt, row_id)

    def settle(self) -> None:
        """Give numbers that stand for choices their labels, now that all rows have been read."""
        from_0, by_text, from_1 = ([ways[n] for _, ways in self._numbers] for n in range(3))
        fits = [labels for labels in (from_0, by_text, from_1) if None not in labels]
        is_clear = fits and not (fits[0] is from_0 and None not in by_text and by_text != from_0)
        for n, (row_id, _) in enumerate(self._numbers):
            if is_clear and (label := fits[0][n]) is not None:
                self.answers[row_id] = self._choice(row_id, [label])
            else:
                self._doubt("numbers", row_id)
        self._numbers.clear()

    def notices(self) -> Iterator[str]:
        """What a user should know of these answers, a line each; nothing where there are none."""
        for doubt, said in DOUBTS.items():
            if (ids := self._doubts.get(doubt)) and (self.answers or doubt != "none"):
                yield f"{len(ids)} of {self.rows} rows with {said} (first: id '{shown(ids[0])}')"

    def _number(self, row_id: str, choices: Choices, number: str, name: str, spelled: bool) -> None:
        """Keep a number beside choices until it is clear what numbers of this source mean; one that is `spelled` as a
        text, or stands beside labels, is the text of a choice where there is such a choice."""
        by_text = None if name in PLACE_FIELDS else choices.label_of(number)
        if by_text is not None and (spelled or choices.labelled):
            self.answers[row_id] = self._choice(row_id, [by_text])
        else:
            self._numbers.append((row_id, (choices.at(int(number)), by_text, choices.at(int(number) - 1))))

    def _take(self, row_id: str, answers: Sequence[str], choices: Choices | None) -> None:
        if choices is not None:
            if labels := list(filter(None, map(choices.label_of, answers))):
                self.answers[row_id] = self._choice(row_id, labels)
                return
            self._doubt("no choice", row_id)
        if len(set(answers)) > 1:
            self._doubt("several", row_id)
        answer = answers[0]
        if len(answer.split()) >= _WHOLE_SENTENCE and (answer.endswith((".", "!", "?")) or "\n" in answer):
            self._doubt("sentence", row_id)
        self.answers[row_id] = GoldAnswer(answer, answers) if len(answers) > 1 else answer

    def _choice(self, row_id: str, labels: Sequence[str]) -> str:
        """Gold that is a choice by its label: its text is as right, unless it is the label of another."""
        choices = self.choices[row_id]
        if len(set(labels)) > 1:
            self._doubt("several", row_id)
        texts = (choices.texts[choices.labels.index(label)] for label in labels)
        return GoldAnswer(labels[0], [*labels, *(text for text in texts if text not in choices.labels)])

    def _doubt(self, doubt: str, row_id: str) -> None:
        self._doubts.setdefault(doubt, []).append(row_id)


def final_answer(name: str, text: str) -> str | None:
    """The answer that the text of a gold field means (see the table above); None where it has none.

    It is read until nothing changes, so that an answer that a run keeps is read as itself.
    """
    answer = _read(text, is_solution=name in SOLUTION_FIELDS)
    for _ in range(_NESTED):
        if answer is None or (again := _read(answer)) in (answer, None):
            break
        answer = again
    return answer


def _read(text: str, is_solution: bool = False) -> str | None:
    text = text.rpartition("</think>")[2].strip()
    if (box := last_box(text)) is not None:
        return box
    if (tagged := _tagged(text)) is not None:
        return tagged
    _, mark, behind = text.rpartition("####")
    if mark:
        return behind.strip().partition("\n")[0].strip() or None
    if (said := _said(text)) is not None:
        return said
    if is_solution and (len(text.split()) > 1 or len(text) > _LONGEST_WORD):
        return None
    if len(parts := text.split("**")) == 3 and parts[1].strip() and not (parts[0] or parts[2].strip(".")):
        return parts[1].strip()
    is_word = text.count(".") == 1 and len(text.split()) == 1
    return (text.removesuffix(".") if is_word else text) or None


def _scalars(value: Any) -> list[Any]:
    """What a gold field holds: of a list its elements, of an object the field of its answer."""
    for _ in range(_NESTED):
        if isinstance(value, dict):
            value = next((value[key] for key in _INSIDE if value.get(key) is not None), value)
        elif isinstance(value, list) and len(value) == 1:
            value = value[0]
    return value if isinstance(value, list) else [value]


def _place(answers: Sequence[str]) -> str | None:
    """The number that may be the place of a choice; None where the answer is none."""
    # Data frames write whole numbers as 1.0 where some are missing.
    number = answers[0].removesuffix(".0")
    return number if len(answers) == 1 and re.fullmatch("[0-9]{1,2}", number) else None


def _tagged(text: str) -> str | None:
    content, start = None, None
    for tag in _TAGS.finditer(text):
        if not tag[1]:
            start = tag.end()
        elif start is not None:
            content, start = text[start : tag.start()].strip() or content, None
    # The closing tag may be the text that generation stopped at.
    if content is None and start is not None and "\n" not in text[start:].strip():
        content = text[start:].strip() or None
    return content


def _said(text: str) -> str | None:
    """What the last line says the answer to be."""
    before, _, line = text.rpartition("\n")
    above = before.rstrip().rpartition("\n")[2]
    if (match := _SAYS.search(above)) and match.end() == len(above):
        return line.strip(_ADORNMENT) or None
    if match := _SAYS.search(line):
        lead = line[: match.start()].rpartition(". ")[2]
        if set(re.findall(r"\w+", lead.lower())) <= _LEAD:
            rest = line[match.end() :].strip(_ADORNMENT).removesuffix(".").rstrip(_ADORNMENT)
            first, stop, _ = rest.partition(". ")
            # What follows a number or a letter is another sentence; what follows `St.` is not.
            is_sentence = stop and " " not in first and (len(first) == 1 or any(map(str.isdigit, first)))
            return (first if is_sentence else rest) or None
    return None if before else _stated_number(line.strip())


def _stated_number(sentence: str) -> str | None:
    """What a sentence with one verb and a number behind it, such as `The sum is 4`, gives."""
    words = sentence.removesuffix(".").split()
    verbs = [place for place, word in enumerate(words) if word.lower() in _VERBS]
    if not sentence.endswith(".") or len(words) < _WHOLE_SENTENCE or not _JOINS.isdisjoint(words):
        return None
    return words[-1] if verbs == [len(words) - 2] and any(map(str.isdigit, words[-1])) else None
