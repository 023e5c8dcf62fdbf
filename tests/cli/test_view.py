"""`ttrl-pop view`: the page live, for this machine alone."""

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli.commands import ttrl
from cli.test_report import data_of
from report.page.made import learner, made_run, questions

from ttrl_pop.cli.view import Shelf, serve
from ttrl_pop.report.page.html import policy

PATIENCE = 40.0
"""Seconds after which no event comes any more."""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    problems, gold = questions(3)
    for number in (1, 2):
        made_run(tmp_path / f"run-{number}", problems, gold, learner(number, 3, gold), done=3)
    return tmp_path


@contextmanager
def served(*paths: Path) -> Iterator[int]:
    """The port of a server of these paths."""
    server = serve(Shelf(paths), 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def asked(port: int, path: str, host: str | None = None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    return connection.getresponse()


def next_event(stream: http.client.HTTPResponse) -> dict[str, Any]:
    end = time.monotonic() + PATIENCE
    while not (line := stream.readline()).startswith(b"data: "):
        # Signs of life come all the time.
        assert time.monotonic() < end
        assert line
    data: dict[str, Any] = json.loads(line[len(b"data: ") :])
    return data


def test_the_page_is_served_with_its_policy(runs: Path):
    with served(runs / "run-1") as port:
        answer = asked(port, "/")
        text = answer.read().decode()
        assert answer.status == 200
        assert answer.headers["Content-Security-Policy"] == f"{policy(live=True)}; frame-ancestors 'none'"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert data_of(text)["live"] is True
        assert [run["name"] for run in data_of(text)["runs"]] == ["run-1"]
        assert asked(port, "/../secret").status == 404


@pytest.mark.parametrize("path", ["/", "/events"])
def test_who_calls_the_server_by_another_name_gets_nothing(runs: Path, path: str):
    with served(runs) as port:
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", ""):
            assert asked(port, path, host).status == 421
        assert asked(port, "/", f"localhost:{port}").status == 200


def test_new_steps_come_as_events_and_half_of_a_line_does_not(runs: Path):
    metrics = runs / "run-1" / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join(lines[:2]))
    with served(runs / "run-1") as port, asked(port, "/events") as stream:
        assert next_event(stream)["runs"][0]["done"] == 2
        with metrics.open("ab") as file:
            file.write(lines[2][:40])
        assert next_event(stream)["runs"][0]["done"] == 2
        with metrics.open("ab") as file:
            file.write(lines[2][40:])
        assert next_event(stream)["runs"][0]["done"] == 3


def test_of_a_folder_the_newest_run_is_shown_and_others_can_be_chosen(runs: Path):
    (runs / "no run").mkdir()
    with served(runs) as port:
        data = data_of(asked(port, "/").read().decode())
        assert [run["name"] for run in data["runs"]] == ["run-2"]
        links = {each["name"]: each for each in data["choice"]}
        assert {name: each["shown"] for name, each in links.items()} == {"run-2": True, "run-1": False}
        both = data_of(asked(port, f"/{links['run-1']['href']}").read().decode())
        assert [run["name"] for run in both["runs"]] == ["run-2", "run-1"]
        # Nobody asks for what is not in the folder.
        data = data_of(asked(port, "/?run=/etc&run=../x").read().decode())
        assert [run["name"] for run in data["runs"]] == ["run-2"]


def test_a_run_that_breaks_is_told_on_the_page(runs: Path):
    with served(runs / "run-1") as port, asked(port, "/events") as stream:
        next_event(stream)
        (runs / "run-1" / "identity.json").write_text("{}")
        told = next_event(stream)
        assert "identity.json" in told["trouble"]
        assert told["runs"] == []


def test_a_run_that_is_gone_leaves_the_others_and_the_last_one_a_word(runs: Path, capfd: pytest.CaptureFixture[str]):
    with served(runs / "run-1", runs / "run-2") as port:
        shutil.rmtree(runs / "run-2")
        data = data_of(asked(port, "/").read().decode())
        assert [run["name"] for run in data["runs"]] == ["run-1"]
        shutil.rmtree(runs / "run-1")
        data = data_of(asked(port, "/").read().decode())
        assert (data["runs"], data["trouble"]) == ([], "no run is left where there were some")
    assert capfd.readouterr().err == ""


def test_browsers_leave_out_the_port_of_http(runs: Path, monkeypatch: pytest.MonkeyPatch):
    with served(runs) as port:
        pass
    monkeypatch.setattr("ttrl_pop.cli.view.HTTP_PORT", port)
    server = serve(Shelf([runs]), port)
    server.server_close()
    assert server.RequestHandlerClass.hosts == ("127.0.0.1", "localhost")  # type: ignore[attr-defined]


def test_ctrl_c_ends_it_in_silence(runs: Path):
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "ttrl_pop", "view", str(runs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    address = process.stdout.readline()
    match = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\n", address)
    assert match, process.communicate()
    with asked(int(match[1]), "/events") as stream:
        next_event(stream)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 130


def test_where_there_is_no_run_or_no_port_it_is_said_in_a_line(runs: Path, tmp_path: Path):
    assert "no such folder" in ttrl("view", tmp_path / "nothing", code=2).stderr
    with served(runs) as port:
        assert f"--port {port}: cannot be listened on" in ttrl("view", runs, "--port", port, code=2).stderr
