"""Logs as lm-eval 0.4.13 (`--log_samples`) and inspect 0.3.285 wrote them are read as they stand.

`inspect.eval` and `inspect.json` are of two questions in three epochs by a model that replays texts; `lm_eval.jsonl` is
of the times table by an exported folder, under two filters; `lm_eval_repeats.jsonl` of lm-eval's dummy model, each
question asked three times.
"""

import json
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from cli.commands import rows_of, ttrl
from fakes import CASES

from ttrl_pop.errors import UsageError
from ttrl_pop.read import logs
from ttrl_pop.read.logs import ZSTD
from ttrl_pop.read.rollouts import Layout, read_rollouts

LOGS = CASES / "logs"
SAMPLES = {"a": [r"So \boxed{4}", r"\boxed{5}", r"It is \boxed{4}."], "b": [r"\boxed{6}", r"\boxed{6}", "I pass."]}


def texts(path: Path) -> dict[str, list[str]]:
    groups = read_rollouts(str(path), Layout())
    return {group.problem.id: [rollout.text for rollout in group.rollouts_G] for group in groups}


@pytest.mark.parametrize("name", ["inspect.eval", "inspect.json"])
def test_epochs_of_inspect_are_the_rollouts_of_a_problem(name: str) -> None:
    assert texts(LOGS / name) == SAMPLES
    rows = rows_of(ttrl("vote", LOGS / name, "--gold", LOGS / name).stdout)
    assert [(row["id"], row["label"], row["gold"], row["correct"]) for row in rows] == [
        ("a", "4", "4", True),
        ("b", "6", "6", True),
    ]


def test_a_sample_of_lm_eval_counts_under_one_filter() -> None:
    lines = [json.loads(line) for line in (LOGS / "lm_eval.jsonl").read_text().splitlines()]
    assert [row["filter"] for row in lines] == ["number"] * 4 + ["raw"] * 4
    found = texts(LOGS / "lm_eval.jsonl")
    assert found == {str(row["doc_id"]): row["resps"][0] for row in lines[:4]}
    log = LOGS / "lm_eval.jsonl"
    rows = rows_of(ttrl("vote", log, "--gold", log, "--extract", "first-number").stdout)
    assert [row["correct"] for row in rows] == [row["exact_match"] == 1 for row in lines[:4]]
    assert texts(LOGS / "lm_eval_repeats.jsonl") == {"0": ["lol"] * 3, "1": ["lol"] * 3}


def test_each_of_two_joined_tasks_counts_under_the_first_of_its_own_filters(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (LOGS / "lm_eval.jsonl").read_text().splitlines()]
    for line in lines[4:]:
        # `raw` is the only filter of the second task.
        line |= {"doc_id": line["doc_id"] + 10, "doc_hash": "another " + line["doc_hash"]}
    log = tmp_path / "two.jsonl"
    log.write_text("\n".join(map(json.dumps, lines)))
    assert texts(log) == {str(line["doc_id"]): line["resps"][0] for line in lines}


def rewritten(path: Path, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_DEFLATED) -> None:
    """The archive with other contents, packed by a method that this Python can write."""
    with zipfile.ZipFile(LOGS / "inspect.eval") as old, (LOGS / "inspect.eval").open("rb") as raw:
        entries = {}
        for entry in old.infolist():
            raw.seek(entry.header_offset)
            header = raw.read(30)
            raw.read(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"))
            packed = raw.read(entry.compress_size)
            content = zstandard.ZstdDecompressor().decompress(packed, max_output_size=entry.file_size)
            entries[entry.filename] = change(entry.filename, content)
    with zipfile.ZipFile(path, "w", method) as new:
        for name, content in entries.items():
            new.writestr(name, content)


def test_the_archive_is_packed_as_inspect_packs() -> None:
    with zipfile.ZipFile(LOGS / "inspect.eval") as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {ZSTD}


def test_archives_of_older_versions_are_read_too(tmp_path: Path) -> None:
    rewritten(tmp_path / "old.eval", lambda name, content: content)
    assert texts(tmp_path / "old.eval") == SAMPLES


def test_a_sample_without_an_output_is_left_out_and_said(tmp_path: Path) -> None:
    def without(name: str, content: bytes) -> bytes:
        if name != "samples/a_epoch_2.json":
            return content
        sample: dict[str, Any] = json.loads(content)
        return json.dumps({**sample, "output": {"model": "m", "choices": []}}).encode()

    rewritten(tmp_path / "log.eval", without)
    result = ttrl("vote", tmp_path / "log.eval", code=2)
    assert [row["rollouts"] for row in rows_of(result.stdout)] == [2, 3]
    assert "row 2: output holds no completion" in result.stderr


@pytest.mark.parametrize("kind", ["cut", "changed"])
def test_a_damaged_archive_is_said_in_a_line(kind: str, tmp_path: Path) -> None:
    content = bytearray((LOGS / "inspect.eval").read_bytes())
    path = tmp_path / "log.eval"
    if kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        with zipfile.ZipFile(LOGS / "inspect.eval") as archive:
            offset = archive.getinfo("samples/a_epoch_1.json").header_offset
        content[offset + 60 : offset + 160] = bytes(100)
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"log\.eval: (is a zip archive|samples/a_epoch_1\.json is damaged)"):
        texts(path)


def with_frame(path: Path, frame: bytes, size: int | None = None, packed: int | None = None) -> None:
    """The log with a first sample that is `frame`, packed by zstd; its headers say `size` and `packed` bytes."""
    sample = "samples/0_epoch_1.json"
    rewritten(path, lambda name, content: content)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(sample, frame)
        local = archive.getinfo(sample).header_offset
    content = bytearray(path.read_bytes())
    central = content.rindex(sample.encode()) - 46
    for start in (local + 8, central + 10):
        content[start : start + 2] = ZSTD.to_bytes(2, "little")
    for start, value in ((18, packed or len(frame)), (22, size)):
        for header in (local + start, central + start + 2):
            if value is not None:
                content[header : header + 4] = value.to_bytes(4, "little")
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("size", "frame", "said"),
    [
        (40, lambda: zstandard.compress(bytes(40)), r"0_epoch_1\.json:1: .*JSON"),
        (None, lambda: zstandard.compress(bytes(1 << 28)), r"damaged \(it holds other than the \d+ bytes"),
        (100 << 20, lambda: zstandard.compress(bytes(1 << 28)), "holds more than 1000 times its own size"),
        (200 << 20, lambda: zstandard.compress(bytes(1 << 28)), "a sample of more than 128 MiB"),
        # A frame that says that it is of a pebibyte.
        (40, lambda: b"\x28\xb5\x2f\xfd\xe0" + (1 << 50).to_bytes(8, "little") + b"\x01\0\0", "damaged"),
        (40, lambda: zstandard.compress(bytes(range(40)))[:-4], r"damaged \(cut off\)"),
    ],
    ids=["honest", "longer than it says", "swollen", "too long", "a pebibyte", "cut"],
)
def test_a_sample_cannot_fill_the_memory(
    size: int | None, frame: Callable[[], bytes], said: str, tmp_path: Path
) -> None:
    with_frame(tmp_path / "log.eval", frame(), size)
    tracemalloc.start()
    with pytest.raises(UsageError, match=said):
        texts(tmp_path / "log.eval")
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_sample_that_is_damaged_is_said_however_it_was_packed(method: int, tmp_path: Path) -> None:
    path = tmp_path / "log.eval"
    rewritten(path, lambda name, content: content, method)
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("samples/a_epoch_1.json").header_offset
    content = bytearray(path.read_bytes())
    content[offset + 52 : offset + 152] = b"\xff" * 100
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"a_epoch_1\.json is damaged"):
        texts(path)


def test_the_table_of_contents_is_read_once_for_all_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewritten(tmp_path / "log.eval", lambda name, content: content)
    opened = []

    class Counted(zipfile.ZipFile):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            opened.append(1)
            super().__init__(*arguments, **named)

    monkeypatch.setattr(logs.zipfile, "ZipFile", Counted)
    assert texts(tmp_path / "log.eval") == SAMPLES
    assert len(opened) == 2


def test_other_archives_and_objects_are_what_they_were(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("rows.jsonl", "{}")
    with pytest.raises(UsageError, match="is a zip archive or an Excel workbook, which is not read"):
        texts(tmp_path / "other.zip")
    (tmp_path / "object.json").write_text('{\n "samples": [],\n "x": 1\n}\n')
    with pytest.raises(UsageError, match="invalid JSON"):
        texts(tmp_path / "object.json")
