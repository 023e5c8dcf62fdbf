"""A terminal to draw on."""

import errno
import os
import threading

import pytest


@pytest.fixture
def terminal(monkeypatch):
    """The two ends of an 80 × 24 terminal: what a program writes to, and a function that reads the screen's bytes."""
    pty = pytest.importorskip("pty")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    master, slave = pty.openpty()
    stream = os.fdopen(slave, "w", encoding="utf-8")
    seen = bytearray()

    def read_to_the_end() -> None:
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError as error:
                if error.errno in (errno.EIO, errno.EBADF):
                    return
                raise
            if not piece:
                return
            seen.extend(piece)

    reader = threading.Thread(target=read_to_the_end)
    reader.start()

    def screen() -> str:
        stream.close()
        reader.join(timeout=10)
        return seen.decode("utf-8")

    yield stream, screen
    stream.close()
    reader.join(timeout=10)
    os.close(master)
