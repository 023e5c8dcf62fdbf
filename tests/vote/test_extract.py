"""Extraction by golden cases, and hostile texts that must not make it slow."""

import json
import time

import pytest
from fakes import CASES

from ttrl_pop.errors import UsageError
from ttrl_pop.thoughts import MARKS
from ttrl_pop.types import FinishReason
from ttrl_pop.vote.extract import pattern
from ttrl_pop.vote.extract.answer_tags import TAGS
from ttrl_pop.vote.extract.extractor import AUTO, Extractor, build_extractor
from ttrl_pop.vote.extract.turn import ENDS
from ttrl_pop.words import ANSWER

EXTRACT_CASES = json.loads((CASES / "extract.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", EXTRACT_CASES, ids=lambda case: f"{case['form']}:{case['finish']}:{case['text'][:30]}")
def test_extraction(case: dict[str, str]) -> None:
    form = case["form"]
    name = "auto" if form in ("chat", "raw", "thinking") else form
    finish: FinishReason = "length" if case["finish"] == "length" else "stop"
    answer = build_extractor(name).answer(case["text"], finish, is_chat=form != "raw", thinking=form == "thinking")
    assert answer == case["answer"]


@pytest.mark.parametrize(
    "extractor",
    [AUTO, build_extractor("first-number"), build_extractor("last-number")],
    ids=lambda extractor: extractor.name,
)
def test_thoughts_that_a_chat_template_opens_are_none_of_a_raw_prompt(extractor: Extractor) -> None:
    assert extractor.answer("7", "stop", is_chat=False, thinking=True) == "7"
    assert extractor.answer("7", "stop", is_chat=True, thinking=True) is None


@pytest.mark.parametrize("form", ["auto", "first-number", "choice"])
def test_marks_of_a_users_own_are_thoughts(form: str) -> None:
    extractor, marks = build_extractor(form), ("<plan>", "</plan>")
    text = "<plan>Answer: 1</plan>(B)\n\\boxed{2}" if form != "choice" else "<plan>Answer: A</plan>\\boxed{B}"
    said = {"auto": "2", "first-number": "2", "choice": "B"}[form]
    assert extractor.answer(text, "stop", is_chat=True, thinking=marks) == said
    assert extractor.answer(text.partition("</plan>")[0], "stop", is_chat=True, thinking=marks) is None
    # An empty opening mark: the prompt has opened them.
    assert extractor.answer("Answer: 1 \\boxed{A}", "stop", is_chat=True, thinking=("", "</plan>")) is None
    assert extractor.answer(text, "stop", is_chat=True, thinking=("", "</plan>")) == said
    # Marks that are known stay so.
    assert extractor.answer("<think>Answer: 1 \\boxed{A}", "stop", is_chat=True, thinking=marks) is None


@pytest.mark.parametrize("is_chat", [True, False])
def test_marks_of_a_users_own_count_in_raw_prompts_too(is_chat: bool) -> None:
    marks = ("<plan>", "</plan>")
    assert build_extractor("last-number").answer("<plan>7", "stop", is_chat, marks) is None
    assert AUTO.answer("<plan>7</plan>\nAnswer: 8", "stop", is_chat, marks) == "8"


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_all_marks_of_thoughts_are_known(opening: str, closing: str) -> None:
    for change in (str, str.upper, str.lower):
        thoughts = f"{change(opening)}Maybe \\boxed{{1}}?"
        # Words are marks also where a text that the limit cut off begins with them.
        finish: FinishReason = "length" if opening.endswith(":") else "stop"
        assert AUTO.answer(thoughts, finish, is_chat=True, thinking=False) is None
        assert AUTO.answer(f"{thoughts}{change(closing)}Answer: 2", "stop", is_chat=True, thinking=False) == "2"


@pytest.mark.parametrize("token", ENDS)
def test_what_stands_behind_the_end_of_a_turn_is_not_of_it(token: str) -> None:
    text = f"Answer: 2{token}\nuser\nAnswer: 3{token}{token}"
    assert AUTO.answer(text, "stop", is_chat=True, thinking=False) == "2"
    # The turn has ended, whatever came after it.
    assert AUTO.answer(text, "length", is_chat=True, thinking=False) == "2"
    assert AUTO.answer(f"Paris{token}", "stop", is_chat=False, thinking=False) == "Paris"


@pytest.mark.parametrize(("opening", "closing"), TAGS)
def test_all_tags_hold_an_answer(opening: str, closing: str) -> None:
    assert AUTO.answer(f"So {opening} 5\n{closing} it is.", "length", is_chat=True, thinking=False) == "5"
    assert AUTO.answer(f"So {opening} 5", "length", is_chat=True, thinking=False) is None


@pytest.mark.parametrize("word", [word for words in ANSWER.values() for word in words])
def test_answer_lines_of_all_languages(word: str) -> None:
    for line in (f"{word}: 57", f"**{word.capitalize()}：** 57", f"{word}\n57", f"1. {word} → 57"):
        assert AUTO.answer(f"7 * 8 + 1\n{line}\nend", "stop", is_chat=True, thinking=False) == "57"


HOSTILE = {
    "open boxes": r"\boxed{" * 150_000,
    "nested boxes": r"\boxed{" * 100_000 + "}" * 100_000,
    "nested braces in a box": r"\boxed{" + "{" * 100_000 + "}" * 100_000 + "}",
    "open braces": "{" * 1_000_000,
    "spaces after boxed": (r"\boxed" + " " * 1000) * 1000,
    "backslashes": "\\" * 1_000_000,
    "answer and spaces": "answer" + " " * 1_000_000,
    "answer and stars": ("*" * 1000 + "answer" + "* " * 1000 + "\n") * 300,
    "marks": "> #*_-" * 160_000,
    "answer lines": "Answer:\n" * 125_000,
    "hash lines": "####\n" * 200_000,
    "open thoughts": "<think>" * 150_000,
    "closed thoughts": "</think>" * 125_000,
    "thoughts of gpt-oss": "<|channel|>analysis" * 50_000,
    "quotes in quotes": "'\\" + "\\'" * 50_000,
    "objects": '{"a":' * 20_000,
    "answers of objects": '{"answer": "' * 9_000,
    "fences": "```json\n{" * 10_000 + "}" * 10_000 + " x```",
    "answer tags": "<answer>" * 12_000,
    "signs behind an answer": "Answer: 5" + "✅" * 100_000 + "x",
    "spaces behind an answer": "Answer: 5" + " " * 100_000 + "x",
    "brackets behind an answer": "Answer: " + "(" * 100_000,
    "stars behind an answer": "Answer: " + "**a" * 30_000,
    "dollars behind an answer": "Answer: " + "$" * 100_000,
    "commands behind an answer": "Answer: " + "\\text{" * 15_000,
    "reasons": "Answer: 5" + " because" * 12_000,
    "sentences": "Answer: 5" + ". I hope" * 12_000,
    "words before an answer": "the " * 25_000 + "answer: 5",
    "headings": "Answer:\n\n" * 11_000,
    "formulas": "Answer:\n" + "$$\n" * 30_000,
    "answer is": "the answer is " * 7_000,
    "correct letters": "A is " * 20_000 + "(" * 50_000,
    "letters that are correct": "A is correct " * 20_000,
    "letters that are true": "A is true and " * 20_000,
    "sentences of correct letters": "A is correct. " * 20_000,
    "what it is so": "so it is " * 20_000,
    "choices in lines": "A) 3\n" * 20_000,
    "lines and an answer": "a\n" * 50_000 + "Answer: 5",
    "digits": "1" * 1_000_000,
    "groups of digits": "111 " * 250_000,
    "powers": "1^" * 500_000,
    "times": "1 × 10" * 150_000,
    "fractions of letters": "\\frac{1}{" * 100_000,
    "a long fraction": "\\frac{" + "1 " * 500_000,
    "spaces between digits": ("1" + " " * 1000) * 1000,
    "underscores": "_" * 1_000_000,
    "digits after a letter": "x" + "1" * 1_000_000,
    "thousands": "1" + ",111" * 250_000 + "1",
    "thousands of India": "1," + "11," * 13_000,
    "thousands and decimals": "1" + ".111" * 100_000 + ",",
    "fractions": "1/" * 500_000,
    "dots": "1." * 500_000,
    "signs": "-" * 1_000_000,
    "newlines": "\n" * 1_000_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize(
    ("extractor", "is_chat"),
    [
        (AUTO, True),
        (AUTO, False),
        (build_extractor("first-number"), True),
        (build_extractor("last-number"), True),
        (build_extractor("choice"), True),
    ],
    ids=["chat", "raw", "first-number", "last-number", "choice"],
)
@pytest.mark.parametrize("finish", ["stop", "length"])
def test_extraction_of_hostile_text_is_quick(
    extractor: Extractor, text: str, finish: FinishReason, is_chat: bool
) -> None:
    # Of this process: other work on the machine is not the text's fault.
    start = time.process_time()
    extractor.answer(text, finish, is_chat, thinking=False)
    # Linear scans take about 0.1 s; one that backtracks takes minutes.
    assert time.process_time() - start < 2


@pytest.mark.usefixtures("plug_ins")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("first", "must be one of auto, regex:PATTERN, .* or package.module:Name, got 'first'"),
        ("my_extract:", "must be one of auto, .* or package.module:Name"),
        (":whole", "must be one of auto, .* or package.module:Name"),
        ("regex:(", "is not a valid regular expression"),
        ("regex:\udcff", "'regex:\\\\udcff' holds half a character"),
        ("regex:a{99999999999999999}", "is not a valid regular expression: repeat count too big"),
        ("no_such_module_here:whole", "cannot be imported"),
        ("my_extract:missing", "module my_extract has no 'missing'"),
        ("my_extract:nothing", "must be callable, got .*NoneType"),
    ],
)
def test_a_wrong_extractor_is_a_usage_error(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_extractor(name)


def test_a_pattern_that_tries_too_many_ways_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern, "SECONDS", 0.2)
    extractor = build_extractor("regex:(a|aa)+$")
    with pytest.raises(
        UsageError, match=r"'regex:\(a\|aa\)\+\$' takes more than 0.2 s for a completion of 61 characters"
    ):
        extractor.answer("a" * 60 + "b", "stop", is_chat=True, thinking=False)


def test_a_number_is_found_whole_or_not_at_all() -> None:
    """However a number is cut off, its beginning is no answer."""
    for number in (
        "3.25 × 10^{15}",
        "\\frac{35}{47}",
        "12 345 678",
        "1,234,567.5",
        "1 11/12",
        "2.5e10",
        "10^12",
        "2024-05-17",
    ):
        for end in range(1, len(number)):
            if number[end - 1] == " ":
                # A space ends a number, but for what may follow it.
                continue
            for name in ("first-number", "last-number"):
                answer = build_extractor(name).answer(f"It is {number[:end]}", "length", is_chat=True, thinking=False)
                assert answer is None, (number[:end], answer)
