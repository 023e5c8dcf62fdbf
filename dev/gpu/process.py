"""A phase's process: its rows are handed on as they are said, its output goes to the log, and all that it has started
ends with it."""

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from dev.gpu.rows import MARK, Row

SHARE = 2**20
"""Characters of the log that one phase may fill, so that all of them stay below 16 MiB."""
ENDING = 200
"""Last lines of a phase that are kept whatever it has written."""
CLOSING = 5.0
"""Seconds in which the output of a process that has ended must have been read."""

_SUMMARY = re.compile(r"(?:^|, |=+ )(\d+) (passed|failed|skipped|errors?|xfailed)\b")
_PROGRESS = re.compile(r"([.FEsxX]+)\s*(?:\[ *\d+%\])?")
_LETTERS = {".": "passed", "F": "failed", "E": "errors", "s": "skipped", "x": "xfailed", "X": "failed"}


class Log:
    """One file for the output of all phases, of bounded size."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._written = 0
        self._held: deque[str] = deque(maxlen=ENDING)
        file.write_text("")

    def begin(self, name: str) -> None:
        self._written = 0
        self._write(f"=== {name}\n")

    def line(self, line: str) -> None:
        """Add a line; once a phase has filled its share, the last ones alone are kept, for its end."""
        if self._written + len(line) <= SHARE // 2:
            self._write(line)
        else:
            self._held.append(line[: SHARE // (2 * ENDING)])

    def end(self) -> None:
        if self._held:
            self._write("… lines are left out here …\n" + "".join(self._held))
            self._held.clear()

    def _write(self, text: str) -> None:
        self._written += len(text)
        with self._file.open("a", errors="replace") as file:
            file.write(text)


def run(command: Sequence[str], folder: Path, seconds: float, log: Log, each: Callable[[Row], None]) -> Row:
    """Run a command for at most so many seconds.

    Args:
        each: is given a row as soon as it is said.

    Returns:
        How it ended: its exit status or `out of time`, seconds, the last line, and of pytest how many tests did what.
    """
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    told = Told()
    reader = threading.Thread(target=_read, args=(process.stdout, log, each, told), daemon=True)
    reader.start()
    code: int | str
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        code = "out of time"
    # Workers of pytest, and servers, outlive who has started them, and hold the device.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reader.join(CLOSING)
    if not reader.is_alive():
        process.stdout.close()
    return {"ended": code, "seconds": round(time.monotonic() - began, 1), "last": told.last[-300:], **told.tests()}


class Told:
    """What is kept of a process's output: the last line, and how its tests went."""

    def __init__(self) -> None:
        self.last = ""
        self._summary: Row = {}
        self._seen: Counter[str] = Counter()
        self._failed: list[str] = []

    def see(self, line: str) -> None:
        text = line.strip()
        if not text:
            return
        self.last = text
        if found := _PROGRESS.fullmatch(text):
            self._seen.update(_LETTERS[letter] for letter in found[1])
        elif " in " in text and (counts := _SUMMARY.findall(text)):
            self._summary = {kind: int(count) for count, kind in counts}
        elif text.startswith(("FAILED ", "ERROR ")):
            self._failed.append(text[:200])

    def tests(self) -> Row:
        """Of pytest: what its last line says or, where it was killed before, the dots and letters that were written."""
        counts: Row = self._summary or dict(self._seen)
        if not counts:
            return {}
        told: Row = {"passed": 0, "failed": 0, **counts}
        if not self._summary:
            told["counted"] = "dots"
        return told | ({"which": self._failed[:20]} if self._failed else {})


def _read(output: IO[str], log: Log, each: Callable[[Row], None], told: Told) -> None:
    for line in output:
        log.line(line)
        if line.startswith(MARK):
            # A process that is killed leaves half a line.
            with suppress(ValueError):
                each(json.loads(line.removeprefix(MARK)))
        else:
            told.see(line)
