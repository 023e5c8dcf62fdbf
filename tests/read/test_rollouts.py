"""Pinned here: what a row of rollouts becomes, what an error says, and that a problem's group comes with its last row.

Golden rows and messages are in cases/rollouts.json.
"""

import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import ROOT
from hypothesis import given
from hypothesis import strategies as st

from ttrl_pop.errors import UsageError
from ttrl_pop.read.finish import COUNT_FIELDS, CUT_FLAGS, END_FLAGS, LIMIT_FIELDS, REASON_FIELDS, WRAPPERS
from ttrl_pop.read.logs import read_logged
from ttrl_pop.read.rollouts import TEXT_FIELDS, Layout, read_rollouts
from ttrl_pop.read.rows import ID_FIELDS, Row, read_rows
from ttrl_pop.types import Group

CASES = json.loads((ROOT / "tests/cases" / "rollouts.json").read_text(encoding="utf-8"))
COLUMNS = {
    "texts": lambda rollout: rollout.text,
    "finished": lambda rollout: rollout.finish_reason == "stop",
    "minds": lambda rollout: rollout.mind.seed,
    "logprobs": lambda rollout: list(rollout.logprobs),
    "lengths": lambda rollout: len(rollout.completion_ids),
}


def read_bytes(raw: bytes, **layout: Any) -> list[Group]:
    return list(read_rollouts("-", Layout(**layout), io.BytesIO(raw)))


def outcome(raw: bytes, shuffled: bool) -> list[Group] | str:
    try:
        return read_bytes(raw, shuffled=shuffled)
    except UsageError as error:
        return str(error)


def described(group: Group, columns: set[str]) -> dict[str, Any]:
    found = {name: [of(rollout) for rollout in group.rollouts_G] for name, of in COLUMNS.items() if name in columns}
    return {"id": group.problem.id, "raw": not group.problem.is_chat, **found}


@pytest.mark.parametrize("read", [read_logged, read_rows])
def test_no_row_of_a_pipe_with_a_name_is_lost(read: Callable[[str], Iterator[Row]], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        # As a slow program does: what is read ahead of a pipe, and not given on, is gone.
        with pipe.open("wb", buffering=0) as file:
            for number in range(4):
                file.write(json.dumps({"id": number, "output": "x"}).encode() + b"\n")
                time.sleep(0.05)

    writer = threading.Thread(target=write)
    writer.start()
    assert [int(row.fields["id"]) for row in read(str(pipe))] == [0, 1, 2, 3]
    writer.join()


@pytest.mark.parametrize("case", CASES["read"], ids=lambda case: case["name"])
def test_what_rows_become(case: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    file.write_text("\n".join(case["lines"]), encoding="utf-8")
    groups = list(read_rollouts(str(file), Layout(**case.get("layout", {}))))
    assert [group.problem.index for group in groups] == list(range(len(groups)))
    assert len(groups) == len(case["want"])
    for group, want in zip(groups, case["want"], strict=True):
        assert described(group, set(want)) == {"raw": False, **want}


@pytest.mark.parametrize("case", CASES["errors"], ids=lambda case: case["name"])
def test_what_an_error_says(case: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    file.write_text("\n".join(case["lines"]), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        list(read_rollouts(str(file), Layout(**case.get("layout", {}))))
    assert str(caught.value).replace(str(file), "FILE") == case["error"]


@pytest.mark.parametrize("case", CASES["left out"], ids=lambda case: case["name"])
def test_a_row_that_cannot_be_read_costs_no_other(case: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    file.write_text("\n".join(case["lines"]), encoding="utf-8")
    errors: list[UsageError] = []
    groups = list(read_rollouts(str(file), Layout(), refused=errors.append))
    assert [described(group, {"texts"}) for group in groups] == [{"raw": False, **want} for want in case["want"]]
    assert [str(error).replace(str(file), "FILE") for error in errors] == case["errors"]


@pytest.mark.parametrize("case", CASES["notices"], ids=lambda case: case["name"])
def test_what_a_user_is_told(case: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    file.write_text("\n".join(case["lines"]), encoding="utf-8")
    told: list[str] = []
    list(read_rollouts(str(file), Layout(), notice=told.append))
    assert [line.replace(str(file), "FILE") for line in told] == case["notices"]


def test_a_layout_that_does_not_fit_is_refused_at_once() -> None:
    source = Fed(*({"text": "1"} for _ in range(1000)))
    with pytest.raises(UsageError, match=r"^<stdin>:1: no problem id"):
        next(read_rollouts("-", Layout(), source, refused=lambda error: None))
    assert source.taken <= 101


def test_every_text_field_is_in_a_case() -> None:
    lines = "".join(line for case in CASES["read"] for line in case["lines"])
    assert [field for field in TEXT_FIELDS if f'"{field}": ' not in lines] == []


class Fed:
    """Lines that are counted as they are taken."""

    def __init__(self, *rows: dict[str, Any]) -> None:
        self.rows, self.taken = rows, 0

    def readline(self, size: int, /) -> bytes:
        if self.taken == len(self.rows):
            return b""
        self.taken += 1
        return json.dumps(self.rows[self.taken - 1]).encode() + b"\n"


def test_a_group_comes_with_the_first_row_after_it() -> None:
    source = Fed(*({"id": name, "text": "1"} for name in "aabbbc"))
    taken = []
    for group in read_rollouts("-", Layout(), source):
        taken.append((group.problem.id, len(group.rollouts_G), source.taken))
    assert taken == [("a", 2, 3), ("b", 3, 6), ("c", 1, 6)]
    source = Fed(*({"id": name, "text": "1"} for name in "aab"))
    next(iter(read_rollouts("-", Layout(shuffled=True), source)))
    assert source.taken == 3


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text() | st.sampled_from(["role", "type", "content"]), inner, max_size=3)
    ),
    max_leaves=6,
)
finish_fields = (*REASON_FIELDS, *CUT_FLAGS, *END_FLAGS, *WRAPPERS, *COUNT_FIELDS, *LIMIT_FIELDS)
known = st.sampled_from(
    [*ID_FIELDS, *TEXT_FIELDS, *finish_fields, "mind", "logprobs", "mean_logprob", "completion_ids", "form", "parts"]
)
completions = st.text() | st.lists(st.text() | st.dictionaries(known, json_values, max_size=3), max_size=3)


@given(
    st.lists(
        st.builds(
            lambda base, more: {**more, **base},
            st.fixed_dictionaries({"id": st.sampled_from("ab"), "text": completions}),
            st.dictionaries(known, json_values, max_size=2),
        )
        | st.dictionaries(known | st.text(), json_values | completions, max_size=4),
        max_size=4,
    ),
    st.booleans(),
)
def test_any_json_reads_or_fails_in_one_printable_line(rows: list[dict[str, Any]], shuffled: bool) -> None:
    found = outcome("\n".join(map(json.dumps, rows)).encode(), shuffled)
    if isinstance(found, str):
        assert found.startswith("<stdin>:")
        assert found.isprintable()
        return
    assert len({group.problem.id for group in found}) == len(found)
    for group in found:
        assert group.rollouts_G
        for rollout in group.rollouts_G:
            rollout.text.encode("utf-8")


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.text(st.characters(exclude_categories=["Cs"]))), min_size=1))
def test_shuffled_rows_are_the_groups_of_sorted_ones(pairs: list[tuple[str, str]]) -> None:
    def groups(rows: list[tuple[str, str]], shuffled: bool) -> dict[str, list[str]]:
        raw = "\n".join(json.dumps({"id": name, "text": text}) for name, text in rows).encode()
        found = read_bytes(raw, shuffled=shuffled)
        return {group.problem.id: [rollout.text for rollout in group.rollouts_G] for group in found}

    assert groups(pairs, True) == groups(sorted(pairs, key=lambda pair: pair[0]), False)
