"""run.log: lines of JSON that outlast kills, and that stop nothing."""

import datetime
import json
import os
from pathlib import Path

import pytest

from ttrl_pop.store.log import LONGEST, Log


def test_a_line_is_an_object_with_time_level_and_text(tmp_path: Path) -> None:
    log = Log(tmp_path / "run.log")
    for level, text in (("notice", "one\nline \x1b[31m"), ("error", "x" * (LONGEST + 1))):
        assert log.write(level, text) is None
    rows = [json.loads(line) for line in (tmp_path / "run.log").read_text().splitlines()]
    assert [(row["level"], row["text"]) for row in rows] == [("notice", "one\nline \x1b[31m"), ("error", "x" * LONGEST)]
    times = [datetime.datetime.fromisoformat(row["time"]) for row in rows]
    assert times[0] <= times[1]
    assert times[0].utcoffset() == datetime.timedelta(0)
    assert "\x1b" not in (tmp_path / "run.log").read_text()


def test_a_torn_line_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    assert Log(path).write("notice", "before") is None
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    assert Log(path).write("notice", "after") is None
    first, torn, last = path.read_bytes().splitlines(keepends=True)
    assert (first, torn) == (whole, whole[:20] + b"\n")
    assert json.loads(last)["text"] == "after"


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "device"])
def test_what_stands_in_its_place_is_said_and_left_alone(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "run.log", tmp_path / "other"
    other.write_text("mine")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(other if kind == "link" else "/dev/full")
    assert Log(path).write("notice", "text")
    assert other.read_text() == "mine"


def test_a_run_that_is_gone_has_no_log(tmp_path: Path) -> None:
    assert Log(tmp_path / "gone" / "run.log").write("notice", "text") is None
    assert not (tmp_path / "gone").exists()
