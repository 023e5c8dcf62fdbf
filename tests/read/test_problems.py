"""Pinned here: what a row becomes, what an error says, and that gold answers never reach a problem.

Golden rows and messages are in cases/problems.json.
"""

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from fakes import ROOT
from hypothesis import given
from hypothesis import strategies as st

from ttrl_pop.config import ProblemsConfig
from ttrl_pop.errors import UsageError
from ttrl_pop.read.chat import ROLES
from ttrl_pop.read.choices import CHOICE_FIELDS
from ttrl_pop.read.gold import GOLD_FIELDS
from ttrl_pop.read.problems import read_gold, read_problems, write_gold, write_problems
from ttrl_pop.read.question import CONTEXT_FIELDS, HISTORY_FIELDS, INSTRUCTION, PROMPT_FIELDS, SYSTEM_FIELDS
from ttrl_pop.read.rows import ID_FIELDS
from ttrl_pop.types import Problem, ProblemSet

CASES = json.loads((ROOT / "tests/cases/problems.json").read_text(encoding="utf-8"))
AUTO = ProblemsConfig()


def read_bytes(raw: bytes, options: ProblemsConfig = AUTO) -> ProblemSet:
    return read_problems("-", options, stdin=io.BytesIO(raw))


def outcome(raw: bytes, options: ProblemsConfig) -> ProblemSet | str:
    try:
        return read_bytes(raw, options)
    except UsageError as error:
        return str(error)


def read_rows(rows: Iterable[Any], options: ProblemsConfig = AUTO) -> ProblemSet:
    return read_bytes("\n".join(map(json.dumps, rows)).encode(), options)


def expected(index: int, want: dict[str, Any]) -> Problem:
    if "asked" in want:
        turn = {"role": "user", "content": f"{want['asked']}\n\n{INSTRUCTION}"}
        return Problem(want["id"], (turn,), index)
    return Problem(want["id"], want["raw"] if "raw" in want else tuple(want["messages"]), index)


def write_case(case: dict[str, Any], folder: Path) -> tuple[str, ProblemsConfig, str | None]:
    source, gold = folder / "problems.jsonl", folder / "gold.jsonl"
    source.write_text("\n".join(case["lines"]), encoding="utf-8", newline="")
    if "gold" in case:
        gold.write_text("\n".join(case["gold"]), encoding="utf-8", newline="")
    options = ProblemsConfig(**case.get("options", {}))
    return str(source), options, str(gold) if "gold" in case else None


@pytest.mark.parametrize("case", CASES["read"], ids=lambda case: case["name"])
def test_what_a_file_becomes(case: dict[str, Any], tmp_path: Path) -> None:
    found = read_problems(*write_case(case, tmp_path))
    assert found.problems == tuple(expected(index, want) for index, want in enumerate(case["want"]))
    assert dict(found.answers) == case["answers"]
    for problem_id, others in case.get("others", {}).items():
        assert list(getattr(found.answers[problem_id], "others", ())) == others
    kept = tmp_path / "kept.jsonl"
    kept.write_text("\n".join(write_gold(found.answers)), encoding="utf-8")
    if found.answers:
        again = read_gold(str(kept), AUTO)
        assert [(i, a, getattr(a, "others", ())) for i, a in again.items()] == [
            (i, a, getattr(a, "others", ())) for i, a in found.answers.items()
        ]


@pytest.mark.parametrize("case", CASES["errors"], ids=lambda case: case["name"])
def test_what_an_error_says(case: dict[str, Any], tmp_path: Path) -> None:
    source, options, gold = write_case(case, tmp_path)
    with pytest.raises(UsageError) as caught:
        read_problems(source, options, gold)
    assert str(caught.value).replace(source, "FILE").replace(str(gold), "GOLD") == case["error"]


@pytest.mark.parametrize("case", CASES["notices"], ids=lambda case: case["name"])
def test_what_a_user_is_told(case: dict[str, Any], tmp_path: Path) -> None:
    source, options, gold = write_case(case, tmp_path)
    told: list[str] = []
    read_problems(source, options, gold, notice=told.append)
    assert [line.replace(source, "FILE").replace(str(gold), "GOLD") for line in told] == case["notices"]


def test_words_before_a_choice_are_not_passed_over_without_end() -> None:
    row = {"prompt": "p", "choices": ["3", "4"], "answer": "option " * 2000 + "x"}
    assert read_rows([row]).answers["1"] == row["answer"]
    assert read_rows([row | {"answer": "Answer option B"}]).answers["1"] == "B"


def test_standard_input_has_a_name_in_errors() -> None:
    with pytest.raises(UsageError, match=r"^<stdin>:2: must be a JSON object, got a list\.$"):
        read_bytes(b'{"prompt": "p"}\n[]')


@pytest.mark.parametrize("raw", [b'{"prompt": "p"}', b'[{"prompt": "p"}]', b'\n{"prompt": "p"}'])
def test_a_byte_order_mark_is_tolerated(raw: bytes) -> None:
    assert read_bytes(b"\xef\xbb\xbf" + raw) == read_bytes(raw)


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (b'{"prompt": "p"}\n\n{"prompt": "\xff"}', 3),
        (b'[{"prompt": "p"},\n{"prompt": "\xff"}]', 2),
        (b'{"prompt": "\xed\xa0\x80"}', 1),
    ],
    ids=["line", "array", "encoded surrogate"],
)
def test_invalid_utf8_is_placed(raw: bytes, line: int) -> None:
    with pytest.raises(UsageError, match=rf"^<stdin>:{line}: not valid UTF-8 \(byte 0x"):
        read_bytes(raw)


@pytest.mark.parametrize("raw", [b'{"prompt": ' + b"[" * 100_000, b"[" * 100_000], ids=["line", "array"])
def test_nesting_is_refused_and_not_a_crash(raw: bytes) -> None:
    with pytest.raises(UsageError, match=r"^<stdin>:1: JSON nested too deeply"):
        read_bytes(raw)


def test_integers_may_have_any_length() -> None:
    assert read_bytes(b'{"prompt": "p", "answer": ' + b"9" * 10_000 + b"}").answers["1"] == "9" * 10_000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is a directory. Name a JSON Lines or JSON file in it."),
        ("none.jsonl", "no such file. Check the path."),
        ("none", "no such file. For a dataset of the hub write hf:"),
        ("x" * 300, "cannot be read (File name too long)."),
        ("a\0b", "cannot be the name of a file (embedded null byte)."),
        ("a\nb.jsonl", "no such file. Check the path."),
    ],
)
def test_a_source_that_cannot_be_read(name: str, message: str, tmp_path: Path) -> None:
    source = str(tmp_path / name)
    shown = source.replace("\0", "\\x00").replace("\n", "\\n")
    with pytest.raises(UsageError) as caught:
        read_problems(source, AUTO)
    assert str(caught.value).startswith(f"{shown}: {message}")
    (tmp_path / "problems.jsonl").write_text('{"prompt": "p"}')
    with pytest.raises(UsageError) as caught:
        read_problems(str(tmp_path / "problems.jsonl"), AUTO, gold=source)
    assert str(caught.value).startswith(f"{shown}: {message}")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            b'{"id": "2", "prompt": "a"}\n{"prompt": "b"}',
            ":2: has no id and would get its number, 2, the id of line 1. Give",
        ),
        (
            b'{"prompt": "a"}\n{"id": 1, "prompt": "b"}',
            ":2: id '1' is that of line 1, by its number. Give each row an id.",
        ),
        (
            b'{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}',
            ":2: id '1' stands on line 1 already. Make ids unique.",
        ),
    ],
)
def test_an_id_that_a_row_has_from_its_number_is_said(raw: bytes, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_bytes(raw)
    assert str(caught.value).startswith(f"<stdin>{message}")


def test_an_empty_path_is_no_directory() -> None:
    for gold in (None, ""):
        with pytest.raises(UsageError, match=r"^the path of a file is empty\. Name a file, or - for standard input\.$"):
            read_problems([{"prompt": "p"}] if gold == "" else "", AUTO, gold=gold)


# --- properties ---

text = st.text(st.characters(exclude_categories=["Cs"]))
spoken = text.filter(str.strip)
roles = text.filter(lambda role: role not in {*ROLES, "assistant"})
turn = st.dictionaries(text.filter(lambda key: key not in ("role", "content")), text, max_size=1).flatmap(
    lambda extra: st.fixed_dictionaries({"role": roles, "content": spoken}).map(lambda base: {**extra, **base})
)
prompts = st.one_of(spoken, st.lists(turn, min_size=1, max_size=3).map(tuple))
prompts_by_id = st.dictionaries(text, prompts, min_size=1, max_size=5)


def make_problems(prompts: dict[str, Any]) -> tuple[Problem, ...]:
    return tuple(Problem(key, prompt, index) for index, (key, prompt) in enumerate(prompts.items()))


@given(prompts_by_id)
def test_what_is_written_reads_back_equal(prompts: dict[str, Any]) -> None:
    problems = make_problems(prompts)
    lines = list(write_problems(problems))
    assert not any("\n" in line for line in lines)
    assert read_bytes("\n".join(lines).encode()).problems == problems
    assert read_bytes(f"[{','.join(lines)}]".encode()) == read_bytes("\n".join(lines).encode())


@given(prompts_by_id, st.data())
def test_the_fingerprint_is_that_of_ids_and_prompts_in_order(prompts: dict[str, Any], data: st.DataObject) -> None:
    rows = [json.loads(line) for line in write_problems(make_problems(prompts))]
    fingerprint = read_rows(rows).fingerprint
    place = data.draw(st.integers(0, len(rows) - 1))
    for changed in (
        rows[::-1] if len(rows) > 1 else [],
        [*rows[:place], {**rows[place], "id": rows[place]["id"] + "'"}, *rows[place + 1 :]],
        [*rows[:place], {"id": rows[place]["id"], "problem": "another"}, *rows[place + 1 :]],
        [*rows, {"id": "".join(row["id"] for row in rows) + "'", "prompt": "one more"}],
    ):
        if changed and len({row["id"] for row in changed}) == len(changed):
            assert read_rows(changed).fingerprint != fingerprint


scalars = st.one_of(spoken, st.integers(), st.floats(allow_nan=False), st.booleans())


@given(prompts_by_id, st.dictionaries(st.sampled_from([f for f in GOLD_FIELDS if "." not in f]), scalars), scalars)
def test_gold_reaches_the_answer_key_and_nothing_else(
    prompts: dict[str, Any], gold: dict[str, Any], truth: Any
) -> None:
    rows = [json.loads(line) for line in write_problems(make_problems(prompts))]
    bare = read_rows(rows)
    golden = read_rows([{**row, **gold, "reward_model": {"ground_truth": truth}} for row in rows])
    assert not bare.answers
    assert (golden.problems, golden.fingerprint) == (bare.problems, bare.fingerprint)
    assert set(golden.answers) <= set(prompts)
    assert all(answer.strip() == answer != "" for answer in golden.answers.values())


balanced = st.recursive(
    st.sampled_from(["x", "1", r"\{", r"\}", r"\\", " ", r"\frac"]),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: "{" + "".join(parts) + "}"),
)


@given(st.text(r"\{}boxed "), balanced, st.text("}ab "))
def test_the_last_box_is_found_behind_any_text(before: str, inside: str, after: str) -> None:
    found = read_rows([{"prompt": "p", "solution": rf"{before} \boxed{{x{inside}}}{after}"}])
    assert found.answers["1"] == f"x{inside}".strip()


def test_a_solution_of_unclosed_boxes_takes_linear_time() -> None:
    start = time.process_time()
    found = read_rows([{"prompt": "p", "solution": r"\boxed{" * 10_000}])
    assert not found.answers
    assert time.process_time() - start < 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
parts = [*CONTEXT_FIELDS, *CHOICE_FIELDS, *SYSTEM_FIELDS, *HISTORY_FIELDS, "A", "B"]
known_fields = st.sampled_from([*PROMPT_FIELDS, *parts, *GOLD_FIELDS, *ID_FIELDS, "reward_model", "text"])
messages = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "name", "from", "value", "type"]), json_values) | json_values,
    max_size=3,
)


@given(
    st.lists(st.dictionaries(known_fields | st.text(), json_values | messages), max_size=3),
    st.builds(
        ProblemsConfig,
        prompt_key=st.none() | known_fields,
        answer_key=st.none() | known_fields,
        id_key=st.none() | known_fields,
        form=st.sampled_from(["auto", "chat", "raw"]),
    ),
    st.booleans(),
)
def test_any_json_reads_or_fails_in_one_printable_line(
    rows: list[dict[str, Any]], options: ProblemsConfig, array: bool
) -> None:
    raw = json.dumps(rows) if array else "\n".join(map(json.dumps, rows))
    found = outcome(raw.encode(), options)
    if isinstance(found, str):
        assert found.startswith("<stdin>:")
        assert found.isprintable()
    else:
        lines = "\n".join(write_problems(found.problems)).encode()
        assert read_bytes(lines).problems == found.problems


@given(st.binary())
def test_any_bytes_fail_in_one_printable_line(raw: bytes) -> None:
    with pytest.raises(UsageError) as caught:
        read_bytes(raw)
    assert str(caught.value).isprintable()


# --- datasets ---


class FakeHub:
    """Stands in for `datasets.load_dataset`; each row says what was asked for."""

    def __init__(self, *splits: str) -> None:
        self.splits = splits

    def __call__(self, name: str, config: str | None, split: str | None, revision: str | None) -> Iterable[Any]:
        name = f"{name}@{revision}" if revision else name

        def rows(held: str) -> list[dict[str, Any]]:
            return [{"prompt": f"{name} {config} {held}", "answer": 0.5, "idx": 3, "label": float("nan")}]

        return rows(split) if split else {held: rows(held) for held in self.splits}


def silent(name: str, revision: str | None) -> None:
    """A hub that does not say which commit a revision is."""


@pytest.mark.parametrize(
    ("source", "prompt"),
    [
        ("hf:org/name", "org/name None test"),
        ("hf:org/name:main", "org/name main test"),
        ("hf:org/name:train", "org/name None train"),
        ("hf:org/name:train[:10]", "org/name None train[:10]"),
        ("hf:org/name:main:odd", "org/name main odd"),
        ("hf:org/name:main:train[5:10]", "org/name main train[5:10]"),
        ("hf:org/name::odd", "org/name None odd"),
        ("hf:org/name@v1", "org/name@v1 None test"),
        ("hf:org/name@v1:main:odd", "org/name@v1 main odd"),
    ],
)
def test_a_dataset_is_named_by_config_and_split(source: str, prompt: str) -> None:
    found = read_problems(source, AUTO, load_dataset=FakeHub("train", "test"), resolve=silent)
    assert found.source == source
    assert found.problems == (Problem("3", prompt, 0),)
    assert dict(found.answers) == {"3": "0.5"}


def test_train_is_read_where_there_is_no_test_split() -> None:
    found = read_problems("hf:n", AUTO, load_dataset=FakeHub("extra", "train"), resolve=silent)
    assert found.problems[0].prompt == "n None train"


def test_errors_of_a_dataset_name_it_and_its_row() -> None:
    with pytest.raises(UsageError, match=r"^hf:n: no test or train split \(found: a, b\)\. Write hf:NAME:co"):
        read_problems("hf:n", AUTO, load_dataset=FakeHub("a", "b"), resolve=silent)
    with pytest.raises(UsageError, match=r"^hf:n:test: row 2: no prompt field \(found: text\)\."):
        read_problems("hf:n:test", AUTO, load_dataset=lambda *_: [{"prompt": "p"}, {"text": "t"}], resolve=silent)
    with pytest.raises(UsageError, match=r"^hf:: no dataset name\."):
        read_problems("hf:", AUTO, load_dataset=FakeHub("test"), resolve=silent)
    nan = {"prompt": "p", "answer": float("nan")}
    assert not read_problems("hf:n:test", AUTO, load_dataset=lambda *_: [nan], resolve=silent).answers


def run_program(program: str, stdin: str = "") -> tuple[str, str]:
    """stdout and stderr of a new process: no torch imported yet, annotations not checked."""
    head = "from ttrl_pop.config import ProblemsConfig\nfrom ttrl_pop.read.problems import read_problems\n"
    run = subprocess.run(
        [sys.executable, "-c", head + program], input=stdin, capture_output=True, text=True, cwd=ROOT, check=False
    )
    return run.stdout, run.stderr


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("hf:org/name", "hf:org/name@None-is-c0ffee"),
        ("hf:org/name:main:train[:10]", "hf:org/name@None-is-c0ffee:main:train[:10]"),
        ("hf:org/name@v1:train", "hf:org/name@v1-is-c0ffee:train"),
    ],
)
def test_the_commit_is_found_first_and_its_rows_are_read(source: str, kept: str) -> None:
    hub = FakeHub("train", "test")
    found = read_problems(source, AUTO, load_dataset=hub, resolve=lambda name, revision: f"{revision}-is-c0ffee")
    assert found.source == kept
    again = read_problems(kept, AUTO, load_dataset=hub, resolve=silent)
    assert again.problems == found.problems
    assert "c0ffee" in str(found.problems[0].prompt), "what is loaded is the commit"


# --- limit ---


def test_a_limit_takes_the_first_problems_and_leaves_the_gold_of_others(tmp_path: Path) -> None:
    problems, gold = tmp_path / "p.jsonl", tmp_path / "gold.jsonl"
    problems.write_text("".join(json.dumps({"id": str(i), "prompt": f"p{i}"}) + "\n" for i in range(5)) + "no JSON\n")
    gold.write_text("".join(json.dumps({"id": str(i), "answer": str(i)}) + "\n" for i in range(5)))
    found = read_problems(str(problems), ProblemsConfig(limit=3), str(gold))
    assert [problem.id for problem in found.problems] == ["0", "1", "2"]
    assert dict(found.answers) == {"0": "0", "1": "1", "2": "2"}
    head = "".join(problems.read_text().splitlines(keepends=True)[:3]).encode()
    assert found.fingerprint == read_bytes(head).fingerprint
    assert len(read_problems(str(problems), ProblemsConfig(limit=5)).problems) == 5
    with pytest.raises(UsageError, match=r"p\.jsonl:6: invalid JSON"):
        read_problems(str(problems), ProblemsConfig(limit=6))


def test_many_rows_are_read_quickly_from_the_standard_input_of_the_process_without_torch() -> None:
    row = {"problem": "What is seven times eight?", "solution": r"It is \boxed{56}."}
    stdout, stderr = run_program(
        "import sys, time; start = time.process_time(); found = read_problems('-', ProblemsConfig())\n"
        "print(len(found.answers), time.process_time() - start < 5, 'torch' in sys.modules)",
        stdin=f"{json.dumps(row)}\n" * 50_000,
    )
    assert (stdout, stderr) == ("50000 True False\n", "")


# --- real files ---


def test_the_times_table_is_right() -> None:
    found = read_problems(
        str(ROOT / "examples/times-table.jsonl"), AUTO, gold=str(ROOT / "examples/times-table.gold.jsonl")
    )
    factors = [sorted(map(int, problem.id.split("x"))) for problem in found.problems]
    assert len(factors) == len({tuple(pair) for pair in factors}) == 24
    assert {factor for pair in factors for factor in pair} == set(range(2, 10))
    for problem in found.problems:
        a, b = problem.id.split("x")
        assert problem.prompt == f"Q: What is {a} times {b}?\nA: {a} times {b} is"
        assert found.answers[problem.id] == str(int(a) * int(b))
    assert not read_problems(str(ROOT / "examples/times-table.jsonl"), AUTO).answers


@pytest.mark.parametrize(("name", "size"), [("aime24.json", 30), ("math500.json", 500)])
def test_the_data_of_ttrl(name: str, size: int) -> None:
    path = ROOT.parent / "shared/data/ttrl" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    found = read_problems(str(path), ProblemsConfig(form="chat"))
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert len(found.problems) == len({problem.id for problem in found.problems}) == size
    assert dict(found.answers) == {row["id"]: row["answer"] for row in rows}
    assert [problem.prompt for problem in found.problems] == [
        ({"role": "user", "content": f"{row['prompt']}\n\n{INSTRUCTION}"},) for row in rows
    ]
