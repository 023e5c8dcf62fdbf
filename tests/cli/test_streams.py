"""Standard streams that are closed, full or gone, errors of the system, and what libraries warn of."""

import errno
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from typer.testing import CliRunner

from ttrl_pop.cli import advice, app
from ttrl_pop.cli.os_errors import refusal
from ttrl_pop.cli.stdout import StandardError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "run: cannot be written to (No space left on device)"),
        (OSError(errno.EROFS, "Read-only file system", "a/b"), "a/b: cannot be written to (Read-only file system)"),
        (PermissionError(errno.EACCES, "Permission denied", b"a/b"), "a/b: Permission denied"),
        (SafetensorError("I/O error: File too large (os error 27)"), "run: cannot be written to (File too large)"),
        (SafetensorError("header too large"), None),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), None),
        (OSError("of a library"), None),
        (ValueError("os error 28"), None),
    ],
)
def test_errors_of_the_system_are_told_from_others(error: Exception, line: str | None) -> None:
    assert refusal(error, "run") == line


@pytest.mark.parametrize("known", [True, False])
def test_an_error_of_the_system_is_a_line_and_any_other_keeps_its_traceback(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files", "p.jsonl") if known else OSError("of a library")

    monkeypatch.setattr("ttrl_pop.cli.problems.problems", failing)
    result = CliRunner().invoke(app.app, ["problems", "run"])
    assert result.exit_code == 1
    assert result.stderr == ("ttrl-pop: p.jsonl: Too many open files\n" if known else "")
    assert isinstance(result.exception, SystemExit) == known


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_what_is_said_beside_the_data_ends_nothing() -> None:
    with open("/dev/full", "w") as full:
        stream = StandardError(full)
        assert stream.write("text") == 4
        stream.flush()
        assert stream.fileno() == full.fileno()


@pytest.mark.parametrize(("quiet", "said"), [(False, "warning: two lines\n"), (True, "")])
def test_a_warning_of_a_library_is_one_line_or_none(
    quiet: bool, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "showwarning", advice._show)
    monkeypatch.setitem(advice._state, "quiet", quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", advice._show)
        warnings.warn("two\n   lines", RuntimeWarning, stacklevel=1)
    assert capsys.readouterr().err == said


COMMANDS = {
    "closed stdin": ("vote - <&-", 2, "ttrl-pop: <stdin>: empty."),
    "closed stdin, read twice": ("vote - --before - <&-", 2, "ttrl-pop: "),
    "full stdout": ("vote r.jsonl --quiet > /dev/full", 1, "ttrl-pop: standard output cannot be written to"),
    "full version": ("--version > /dev/full", 1, "ttrl-pop: standard output cannot be written to"),
    "full help": ("--help > /dev/full", 1, "ttrl-pop: standard output cannot be written to"),
    "full help of a command": ("vote --help > /dev/full", 1, "ttrl-pop: standard output cannot be written to"),
    "full stderr": ("vote r.jsonl 2> /dev/full", 0, ""),
    "full stderr, an error": ("vote nothing.jsonl 2> /dev/full", 2, ""),
    "closed stderr": ("vote nothing.jsonl 2>&-", 2, ""),
    "closed stdout": ("vote r.jsonl --quiet >&-", 0, ""),
    "all closed": ("vote r.jsonl <&- >&- 2>&-", 0, ""),
}


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("kind", COMMANDS)
def test_streams_that_are_closed_or_full_end_in_a_line(kind: str, tmp_path: Path) -> None:
    words, code, line = COMMANDS[kind]
    (tmp_path / "r.jsonl").write_text(json.dumps({"id": "a", "text": "Answer: 4"}) + "\n")
    done: Any = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m ttrl_pop {words}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == bool(line)
