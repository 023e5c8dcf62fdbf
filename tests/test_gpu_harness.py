"""Measuring on a GPU in a few minutes: what is cut off costs only the rest, and what comes back is small."""

import json
import os
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.autograd import DeviceType

from dev.gpu import page, process, profile, run
from dev.gpu.bundle import pinned
from dev.gpu.peer import plans
from dev.gpu.phases import Phase, phases
from dev.gpu.process import Log, Told


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "all.log")


def python(text: str) -> tuple[str, ...]:
    return (sys.executable, "-u", "-c", textwrap.dedent(text))


def test_rows_come_as_they_are_said_and_nothing_that_was_started_is_left(log: Log, tmp_path: Path) -> None:
    rows: list[Any] = []
    text = """
        import subprocess, sys, time
        print('ROW {"a": 1}')
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print(f'ROW {{"child": {child.pid}}}')
        print('ROW {"half": ', end="")
        time.sleep(60)
    """
    ended = process.run(python(text), tmp_path, 3, log, rows.append)
    assert ended["ended"] == "out of time"
    assert ended["seconds"] < 15
    assert rows[0] == {"a": 1}
    assert len(rows) == 2
    time.sleep(0.2)
    stat = Path(f"/proc/{rows[1]['child']}/stat")
    # A child whose parent is gone waits as a zombie, where nobody asks for it.
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["..F.s [100%]", "FAILED tests/a.py::b - no", "1 failed, 3 passed, 1 skipped in 2.3s"], (3, 1, None)),
        (["==== 72 passed, 2 warnings in 61.00s (0:01:01) ===="], (72, 0, None)),
        (["bringing up nodes...", "..........F. [ 50%]", "...."], (15, 1, "dots")),
    ],
)
def test_tests_leave_a_row_even_where_they_were_cut_off(lines: list[str], found: tuple[int, int, str | None]) -> None:
    told = Told()
    for line in lines:
        told.see(line + "\n")
    row = told.tests()
    assert (row["passed"], row["failed"], row.get("counted")) == found
    assert "tests" not in Told().tests()


def test_the_log_is_one_file_of_bounded_size_that_keeps_beginnings_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "SHARE", 10_000)
    log = Log(tmp_path / "all.log")
    for name in ("one", "two"):
        log.begin(name)
        for number in range(5000):
            log.line(f"{name} {number}\n")
        log.end()
    text = (tmp_path / "all.log").read_text()
    assert len(text) < 2 * 10_000
    assert all(f"{name} {number}\n" in text for name in ("one", "two") for number in (0, 4999))


def ran(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    out = tmp_path / "rows.jsonl"
    scratch = tmp_path / "scratch"
    run.main(["--device=cpu", f"--out={out}", f"--logs={tmp_path}", f"--scratch={scratch}", *arguments])
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phases that do nothing but take a second, and machines that tell what they are told."""
    told = 'print(\'ROW {"device": "d", "versions": {"torch": "1"}}\')'
    monkeypatch.setattr(run, "_environment", lambda given: None)
    slow = python("import time; time.sleep(1)")
    found = [Phase("a", 60, slow), Phase("TRL b", 60, slow, ("trl",)), Phase("c", 60, slow, ("model",))]
    monkeypatch.setattr(run, "phases", lambda *_: found)
    monkeypatch.setattr(run, "Phase", lambda name, seconds, command: Phase(name, seconds, python(told)))


@pytest.mark.usefixtures("few")
def test_what_no_longer_fits_or_lacks_something_is_said_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "scratch" / "demo-float32").mkdir(parents=True)
    rows = ran(tmp_path, "--bundle", str(tmp_path / "none"))
    by_phase = {row["phase"]: row for row in rows}
    assert by_phase["a"]["ended"] == 0
    assert by_phase["TRL b"]["skipped"] == "TRL is not installed"
    assert "demo.gguf" in by_phase["c"]["skipped"]
    assert not (tmp_path / "scratch" / "demo-float32").exists()
    (tmp_path / "rows.jsonl").unlink()
    monkeypatch.setattr(run, "LEAST", 60)
    rows = ran(tmp_path, "--deadline", "60")
    assert [row["skipped"].split(" s are left")[1] for row in rows if row["phase"] == "a"] == [" of --deadline 60"]


@pytest.mark.usefixtures("few")
def test_a_phase_has_what_is_left_before_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    monkeypatch.setattr(run, "run", lambda command, folder, limit, log, each: limits.append(limit) or {"ended": 0})
    ran(tmp_path, "--deadline", "40", "--only", "a")
    assert all(30 < limit <= 40 for limit in limits)
    assert len(limits) == 2


@pytest.mark.usefixtures("few")
def test_the_commit_is_in_the_machine_s_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "commit_here", lambda root: None)
    (tmp_path / "commit").write_text("abc1234\n")
    rows = ran(tmp_path, "--bundle", str(tmp_path), "--only", "none of them")
    assert rows[0]["commit"] == "abc1234"
    monkeypatch.setenv("TTRL_POP_COMMIT", "def")
    assert run.commit(tmp_path) == "def"


def test_the_peer_of_the_bundle_is_that_of_the_benchmarks() -> None:
    assert [line for line in pinned() if line.startswith("trl")] == ["trl==1.14.2"]


def test_what_is_right_comes_before_what_is_fast_and_the_slow_demo_last() -> None:
    names = [phase.name for phase in phases("cuda", False, Path("s"), "m")]
    order = ("tests", "make", "ours", "TRL", "profile", "demo bfloat16", "attention", "demo float32")
    places = [[place for place, name in enumerate(names) if name.startswith(part)] for part in order]
    assert [place for part in places for place in part] == list(range(len(names)))
    assert plans("smollm2", False) == [(128, 1), (512, 0)]
    assert plans("1.5B", False) == [(128, 1)]


def test_annotations_are_no_kernels() -> None:
    def event(key: str, device: DeviceType, annotation: bool = False) -> SimpleNamespace:
        return SimpleNamespace(key=key, device_type=device, is_user_annotation=annotation)

    assert profile.is_kernel(event("gemm", DeviceType.CUDA))
    assert not profile.is_kernel(event("aten::mm", DeviceType.CPU))
    assert not profile.is_kernel(event("Optimizer.step#Fused.step", DeviceType.CUDA))
    assert not profile.is_kernel(event("mine", DeviceType.CUDA, annotation=True))


def test_the_page_bears_phases_that_were_left_out_or_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"run": "r", "phase": "machine", "device": "d", "commit": None, "versions": {}},
        {"run": "r", "phase": "TRL 1.5B", "skipped": "TRL is not installed", "side": "TRL", "model": "1.5B"},
        {"run": "r", "phase": "TRL 1.5B", "side": "TRL", "model": "1.5B", "new_tokens": 128, "step_seconds": 1.0},
        {"run": "r", "phase": "demo", "dtype": "bfloat16", "step": 1, "rollout/accuracy": 0.5},
        {"run": "r", "model": "m", "part": "decode", "seconds": 1e-3, "busy": 1e-3, "kernels": 9, "attained": 0.25},
    ]
    monkeypatch.setattr(page, "rows", lambda: rows)
    assert "| r | m | decode | 1.00 | 1.00 | 9 | 25.0% |" in page.page()


def test_a_run_without_a_commit_and_git_says_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    monkeypatch.delenv("TTRL_POP_COMMIT", raising=False)
    assert run.commit(tmp_path) is None
