"""What is read and checked without a model, and what a user is told of it."""

import json
from pathlib import Path

import pytest

from ttrl_pop.cli import inputs
from ttrl_pop.cli.given import Given


def read(folder: Path, rows: list[dict[str, object]], quiet: bool) -> list[str]:
    """Prompts of problems as `sample` gets them."""
    source = folder / "problems.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    checked = inputs.for_reading(str(source), None, None, Given(), inputs.notices(quiet))
    return [str(problem.prompt) for problem in checked.problems.problems]


@pytest.mark.parametrize("quiet", [False, True])
def test_what_is_not_read_of_a_question_is_told_on_stderr_unless_it_shall_be_quiet(
    quiet: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (prompt,) = read(tmp_path, [{"prompt": "Sum?", "numbers": [2, 3], "\x1b[31m": "x", "answer": "5"}], quiet)
    assert prompt == "Sum?"
    told = (
        f"ttrl-pop: {tmp_path}/problems.jsonl: line 1: not read beside the question: numbers, \\x1b[31m. "
        "Put what belongs to it into the question, or, if it is the gold answer, name it with --answer-key.\n"
    )
    assert capsys.readouterr() == ("", "" if quiet else told)
