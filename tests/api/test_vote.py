"""`ttrl_pop.vote` gives the rows of `ttrl-pop vote`."""

import subprocess
import sys
from pathlib import Path

import pytest
from cli.commands import rows_of, ttrl, write_lines

import ttrl_pop
from ttrl_pop.errors import UsageError

ROWS = [
    {"id": "a", "responses": [r"\boxed{0.50}", r"\boxed{1/2}", r"\boxed{3}"]},
    {"id": "b", "responses": [r"\boxed{7}", r"no idea"]},
]


@pytest.mark.parametrize("kind", ["rows", "text", "path", "generator"])
def test_the_rows_are_those_of_the_command(kind: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rollouts.jsonl", ROWS)
    gold = write_lines(tmp_path / "gold.jsonl", [{"id": "a", "answer": "0.5"}, {"id": "b", "answer": 8}])
    expected = rows_of(ttrl("vote", path, "--gold", gold, "--reward", "frequency").stdout)
    source = {"rows": ROWS, "text": str(path), "path": path, "generator": (row for row in ROWS)}[kind]
    assert list(ttrl_pop.vote(source, gold={"a": "0.5", "b": 8}, reward="frequency")) == expected
    assert list(ttrl_pop.vote(path, gold, reward="frequency")) == expected
    assert [row["correct"] for row in expected] == [True, False]


def test_a_row_is_there_as_soon_as_its_problem_is_read() -> None:
    seen = []

    def rows() -> object:
        for row in [*ROWS, {"id": "c", "response": "x"}]:
            seen.append(row["id"])
            yield row

    votes = ttrl_pop.vote(rows(), grader="exact")
    assert next(votes)["id"] == "a"
    assert seen == ["a", "b"]


def test_a_row_that_cannot_be_read_says_which() -> None:
    with pytest.raises(UsageError, match=r"<rows>: row 2: .*no completion"):
        list(ttrl_pop.vote([ROWS[0], {"id": "b", "responses": []}]))
    refused: list[UsageError] = []
    rows = list(
        ttrl_pop.vote([ROWS[0], {"id": "b", "responses": []}, {"id": "c", "x": {1, 2}}], refused=refused.append)
    )
    assert [row["id"] for row in rows] == ["a"]
    assert len(refused) == 2
    assert "is nothing that JSON could hold" in str(refused[1])


def test_it_needs_no_torch() -> None:
    script = "import sys, ttrl_pop; list(ttrl_pop.vote([{'id': 1, 'response': '5'}])); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
