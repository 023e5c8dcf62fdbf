"""Trackers: each number once, over kills and resumes, and no run that ends for their sake."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, register_tracker_class
from cli.commands import final, run, ttrl

from ttrl_pop.cli.trackers import check, tracked
from ttrl_pop.config import Config
from ttrl_pop.errors import UsageError
from ttrl_pop.store import files, identity
from ttrl_pop.store.directory import RunDirectory

ROWS = [{"step": step, "a": step / 2, "b/count": step, "c": None, "alarm": "text"} for step in range(1, 7)]


class Fake(GeneralTracker):
    """Notes what it is given, and fails where it is told to."""

    name = "fake"
    requires_logging_directory = False
    given: ClassVar[list[Any]] = []
    fails: ClassVar[set[str]] = set()

    def __init__(self, run_name: str, **named: Any) -> None:
        super().__init__()
        self._say("init", run_name, named)

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None:
        self._say("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._say("settings", values["learn.lr"])

    def log(self, values: dict[str, Any], step: int | None, **_: Any) -> None:
        self._say("log", step, values)

    def finish(self) -> None:
        self._say("finish")

    def _say(self, what: str, *more: Any) -> None:
        print("says something on stdout")
        if what in self.fails:
            raise ConnectionError(f"no {what}\nfrom here")
        self.given.append((what, *more))


@pytest.fixture(autouse=True)
def fake() -> Iterator[type[Fake]]:
    register_tracker_class(Fake)
    Fake.given.clear()
    Fake.fails.clear()
    yield Fake
    del LOGGER_TYPE_TO_CLASS["fake"]


@pytest.fixture
def made(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    files.write_atomic(made.identity, identity.of("m", "t", "p", "p.jsonl", {}).dumps().encode())
    return made


def config(*names: str) -> Config:
    return Config(track=names)


def work(
    made: RunDirectory, first: int, last: int, killed: bool = False, names: Sequence[str] = ("fake",)
) -> list[str]:
    """A process that goes on behind step `first` and does the steps up to `last`; what it warns of."""
    said: list[str] = []
    trackers = tracked(made, config(*names), ROWS[:first], said.append, quiet=True)
    log = trackers.__enter__()
    for row in ROWS[first:last]:
        log(row)
    if not killed:
        trackers.__exit__(None, None, None)
    return said


def logged() -> list[int]:
    return [entry[1] for entry in Fake.given if entry[0] == "log"]


def test_a_tracker_is_given_each_number_once_and_the_settings_once(made: RunDirectory, capsys: Any) -> None:
    assert work(made, 0, 2) + work(made, 2, 4) == []
    assert [entry[0] for entry in Fake.given] == [
        *("init", "start", "settings", "log", "log", "finish"),
        *("init", "start", "log", "log", "finish"),
    ]
    assert [entry[1:] for entry in Fake.given if entry[0] == "log"] == [
        (step, {"a": step / 2, "b/count": step}) for step in range(1, 5)
    ]
    assert capsys.readouterr() == ("", "")


def test_a_killed_process_repeats_no_step_and_leaves_none_out(made: RunDirectory) -> None:
    work(made, 0, 3, killed=True)
    # Its newest checkpoint was that of step 1.
    work(made, 1, 5, killed=True)
    work(made, 5, 6)
    assert logged() == [1, 2, 3, 4, 5, 6]


def test_a_tracker_that_comes_later_gets_all_steps(made: RunDirectory) -> None:
    work(made, 0, 3, names=())
    work(made, 3, 4)
    assert logged() == [1, 2, 3, 4]


def test_a_tracker_that_takes_no_chart_up_again_gets_all_steps_and_the_settings(
    made: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttrl_pop.cli.trackers.RENEWED", ("fake",))
    work(made, 0, 2)
    Fake.given.clear()
    work(made, 2, 3)
    assert logged() == [1, 2, 3]
    assert "settings" in [entry[0] for entry in Fake.given]


@pytest.mark.parametrize("what", ["init", "start", "settings", "log", "finish"])
def test_a_tracker_that_fails_is_said_once_and_gets_later_what_it_missed(made: RunDirectory, what: str) -> None:
    Fake.fails.add(what)
    assert work(made, 0, 3) == [f"tracker fake failed (no {what} from here); the run goes on without it"]
    Fake.fails.clear()
    assert work(made, 3, 4) == []
    assert logged() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "content", ["", "{}", '{"chart": "../../x", "given": {}}', '{"chart": "%s", "given": {"fake": -1}}' % ("a" * 32)]
)
def test_what_is_no_state_of_trackers_begins_charts_anew(made: RunDirectory, content: str) -> None:
    work(made, 0, 1)
    identity.record(made, "tracking.json", content.encode())
    (said,) = work(made, 1, 2)
    assert said.endswith("charts begin anew")
    assert logged() == [1, 1, 2]


def test_trackers_that_there_are_not_are_refused_at_the_start() -> None:
    with pytest.raises(UsageError, match="no tracker 'nothing'; there are aim, "):
        check(["nothing"])
    with pytest.raises(UsageError, match="clearml is not installed; run: pip install clearml"):
        check(["clearml"])
    check(["fake"])


def test_one_that_is_not_there_when_a_run_goes_on_is_said(made: RunDirectory) -> None:
    (said,) = work(made, 0, 1, names=("clearml",))
    assert said == "tracker clearml failed (its package is not installed); the run goes on without it"


@pytest.mark.slow
def test_a_run_that_is_tracked_is_the_same_and_says_so_at_resume(place: Path, tmp_path: Path, capsys: Any) -> None:
    run(place, tmp_path / "plain")
    Fake.fails.add("log")
    result = run(place, tmp_path / "run", "--track", "fake")
    assert final(tmp_path / "run") == final(tmp_path / "plain")
    assert result.stderr.count("tracker fake failed") == 1
    assert "says something" not in result.stdout
    Fake.fails.clear()
    ttrl("run", "--resume", tmp_path / "run", "--steps", 4)
    assert logged() == [1, 2, 3, 4]
    ttrl("run", "--resume", tmp_path / "run", "--set", "track=[]")
    assert Fake.given[-1] == ("finish",)
    assert len(logged()) == 4
    result = run(place, tmp_path / "none", "--track", "nothing", code=2)
    assert "no tracker 'nothing'" in result.stderr
    assert not (tmp_path / "none").exists()


def read_tensorboard(made: RunDirectory) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(made.path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def read_trackio(made: RunDirectory) -> dict[str, list[tuple[int, float]]]:
    script = (
        "import json, trackio\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "names = [run.name for run in trackio.Api().runs('ttrl-pop')]\n"
        "print(json.dumps([SQLiteStorage.get_logs('ttrl-pop', name) for name in names], default=str))\n"
    )
    folder = made.path.parent / "trackio"
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "TRACKIO_DIR": str(folder)}, capture_output=True, check=True
    )
    (rows,) = json.loads(done.stdout)
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for key, value in row.items():
            if key not in ("step", "timestamp"):
                found.setdefault(key, []).append((row["step"], value))
    return {key: sorted(pairs) for key, pairs in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "read", "exact"), [("tensorboard", read_tensorboard, np.float32), ("trackio", read_trackio, float)]
)
def test_a_real_tracker_holds_each_number_once_after_a_kill(
    place: Path, tmp_path: Path, name: str, read: Callable[[RunDirectory], Any], exact: Callable[[float], Any]
) -> None:
    pytest.importorskip(name)
    made = RunDirectory(tmp_path / "run")
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-m", "ttrl_pop", "run"]
    more = ["--steps", "40", "--set", "checkpoint.every=5", "--track", name, "--out", str(made.path)]
    process = subprocess.Popen(
        [*command, str(place / "p.jsonl"), "--config", str(place / "c.toml"), *more],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not (made.metrics.exists() and len(made.metrics.read_bytes().splitlines()) >= 8):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    written = len(made.metrics.read_bytes().splitlines())
    assert written < 40
    for steps in (written + 3, written + 5):
        ended = subprocess.run(
            [*command, "--resume", str(made.path), "--steps", str(steps)], env=environment, capture_output=True
        )
        assert ended.returncode == 0, ended.stderr
        assert all(line.startswith(b"{") for line in ended.stdout.splitlines()), ended.stdout
        assert b"failed" not in ended.stderr
    expected: dict[str, list[tuple[int, Any]]] = {}
    for row in files.read_lines(made.metrics):
        for key, value in row.items():
            if key != "step" and isinstance(value, int | float):
                expected.setdefault(key, []).append((row["step"], exact(value)))
    assert {key: [(step, exact(value)) for step, value in pairs] for key, pairs in read(made).items()} == expected
