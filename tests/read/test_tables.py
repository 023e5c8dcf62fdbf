"""Tables become the rows that JSON lines would: spelled as they are, with their lines, without a network."""

import csv
import gzip
import io
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttrl_pop.config import ProblemsConfig
from ttrl_pop.errors import UsageError
from ttrl_pop.read.problems import read_problems
from ttrl_pop.read.rollouts import Layout, read_rollouts
from ttrl_pop.read.rows import read_rows

AUTO = ProblemsConfig()


def table(rows: Sequence[Sequence[str]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue().encode()


def fields(raw: bytes, source: str = "-") -> list[dict[str, Any]]:
    return [row.fields for row in read_rows(source, io.BytesIO(raw))]


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_cells_are_text_as_they_are_spelled(delimiter: str) -> None:
    said = 'He said "1, 2;\t3"\nand left'
    raw = table([["id", "question", "answer"], ["007", said, "0.50"], ["8", "two", ""]], delimiter)
    assert fields(raw) == [
        {"id": "007", "question": said, "answer": "0.50"},
        {"id": "8", "question": "two", "answer": None},
    ]


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
def test_whatever_is_written_is_read(rows: list[tuple[str, str]]) -> None:
    # A byte order mark at the beginning of a line is dropped, and lone carriage returns end lines.
    rows = [(a.replace("\ufeff", "x").replace("\r", "x"), b.replace("\r", "x")) for a, b in rows]
    assert [tuple(found.values()) for found in fields(table([("a", "b"), *rows]))] == rows


def test_a_row_knows_its_first_line() -> None:
    raw = b'id,question\na,one\n\nb,"two\nlines"\nc,three\n'
    assert [(row.id(("id",)), row.number) for row in read_rows("-", io.BytesIO(raw))] == [("a", 2), ("b", 4), ("c", 6)]
    with pytest.raises(UsageError, match=r"^<stdin>:3: has 3 cells for 2 columns\. Put its texts between quotes\.$"):
        fields(b"id,question\na,one\nb,two,three\n")
    with pytest.raises(UsageError, match=r"^<stdin>:3: not valid CSV "):
        fields(b'id,question\na,one\nb,"two\n')
    with pytest.raises(UsageError, match=r"^<stdin>:3: not valid UTF-8 \(byte 0xff\)"):
        fields(b"id,question\na,one\nb,\xff\n")


@pytest.mark.parametrize("raw", [b"1,2\n3,4\n", b"rome,4\n", b"hello,\n", b",\n", b'"x": 1,\n'])
def test_what_has_no_head_is_no_table(raw: bytes) -> None:
    with pytest.raises(UsageError, match=r"^<stdin>:? ?(1: invalid JSON|looks like CSV or TSV without a head)"):
        fields(raw)


@pytest.mark.parametrize(
    ("head", "row", "found"),
    [
        (",question,answer", "0,What?,4", {"question": "What?", "answer": "4"}),
        ("question,answer,", "What?,4,", {"question": "What?", "answer": "4"}),
        ("question,answer,,", "What?,4,x,y", {"question": "What?", "answer": "4"}),
        (",question", "0,What?", {"question": "What?"}),
        ("question,2024,% right", "What?,4,5", {"question": "What?", "2024": "4", "% right": "5"}),
        ("Question;1st try", "What?;4", {"Question": "What?", "1st try": "4"}),
    ],
)
def test_columns_without_a_name_are_not_read_and_names_may_be_numbers(
    head: str, row: str, found: dict[str, str]
) -> None:
    assert fields(f"{head}\n{row}\n".encode()) == [found]


def test_a_name_that_stands_twice_is_said() -> None:
    with pytest.raises(UsageError, match=r"^<stdin>: the first line, which names the columns, has 'answer' twice\. "):
        fields(b"question,answer,answer\na,b,c\n")


def test_a_table_without_rows_is_not_called_empty() -> None:
    with pytest.raises(UsageError, match=r"^<stdin>: has a head and no rows\. Write them below it"):
        fields(b"question,answer\n")


def test_a_lone_column_is_a_table_where_the_name_says_so(tmp_path: Path) -> None:
    for name, packed in (("p.csv", False), ("p.csv.gz", True)):
        raw = b"question\nWhat?\n"
        (tmp_path / name).write_bytes(gzip.compress(raw) if packed else raw)
        assert [row.fields for row in read_rows(str(tmp_path / name))] == [{"question": "What?"}]
    with pytest.raises(UsageError, match="invalid JSON"):
        fields(b"question\nWhat?\n")


def test_problems_of_a_table_are_those_of_lines(tmp_path: Path) -> None:
    rows = [{"id": "a", "question": "1, 2?", "answer": "0.50", "choices": ["x", "y"]}, {"id": "b", "question": "3?"}]
    lines, comma = tmp_path / "p.jsonl", tmp_path / "p.csv"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cells = [[row.get(key, "") for key in ("id", "question", "answer")] for row in rows]
    choices = [json.dumps(row["choices"]) if "choices" in row else "" for row in rows]
    comma.write_bytes(
        table([["id", "question", "answer", "choices"], *([*c, x] for c, x in zip(cells, choices, strict=True))])
    )
    one, other = (read_problems(str(path), AUTO) for path in (lines, comma))
    assert other.problems == one.problems
    assert dict(other.answers) == dict(one.answers) == {"a": "0.50"}
    assert (one.source, other.source) == (str(lines), str(comma))


ROLLOUTS = [
    {"id": "p", "text": "is 56", "mind": 7, "mean_logprob": -0.5, "finish_reason": "stop"},
    {"id": "p", "text": "57", "mind": 8, "mean_logprob": -1.5, "finish_reason": "length"},
    {"id": "q", "text": "1", "mind": 7, "mean_logprob": -2.0, "finish_reason": "stop"},
]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rollouts_of_a_table_are_those_of_lines(kind: str, tmp_path: Path) -> None:
    lines, other = tmp_path / "r.jsonl", tmp_path / f"r.{kind}"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROLLOUTS))
    if kind == "csv":
        other.write_bytes(table([[*ROLLOUTS[0]], *([str(value) for value in row.values()] for row in ROLLOUTS)]))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROLLOUTS), other)
    assert list(read_rollouts(str(other), Layout())) == list(read_rollouts(str(lines), Layout()))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a local file asked the network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["p.parquet", "odd [name]*.bin"])
def test_parquet_is_read_without_a_network_and_leaves_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"id": 1, "question": "a?", "answer": 0.5, "choices": ["x", "y"]},
        {"id": 2, "question": "b?", "answer": float("nan"), "choices": None},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    found = read_problems(name, AUTO)
    assert [problem.id for problem in found.problems] == ["1", "2"]
    assert dict(found.answers) == {"1": "0.5"}
    assert len(read_problems(name, ProblemsConfig(limit=1)).problems) == 1
    assert [path.name for path in tmp_path.rglob("*")] == [name]


def test_a_damaged_parquet_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(UsageError, match=r"p\.parquet: not valid Parquet \(.*\)\. Copy the whole file\.$") as error:
        read_problems(str(tmp_path / "p.parquet"), AUTO)
    assert str(error.value).isprintable()
