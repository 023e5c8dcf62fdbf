"""Extraction by golden cases, and hostile texts that must not make it slow."""

import json
import time

import pytest
from fakes import CASES

from ttrl_pop.errors import UsageError
from ttrl_pop.types import FinishReason
from ttrl_pop.vote.extract.extractor import AUTO, Extractor, build_extractor

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
    "digits": "1" * 1_000_000,
    "digits after a letter": "x" + "1" * 1_000_000,
    "thousands": "1" + ",111" * 250_000 + "1",
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
        ("no_such_module_here:whole", "cannot be imported"),
        ("my_extract:missing", "module my_extract has no 'missing'"),
        ("my_extract:nothing", "must be callable, got .*NoneType"),
    ],
)
def test_a_wrong_extractor_is_a_usage_error(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_extractor(name)
