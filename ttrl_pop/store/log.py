"""run.log: what a run told while it ran, over all processes that worked on it.

One JSON object a line: `{"time": "2026-11-26T21:38:32.123+00:00", "level": "notice", "text": "…"}`, where the level is
`info` (a process begins or ends), `notice`, `warning` or `error`. It is history, which no checkpoint puts back, and
nothing is computed from it: a log that cannot be written stops nothing, and a line that a kill has torn stays one.
"""

import datetime
import json
import os
import stat
from pathlib import Path
from typing import Literal

Level = Literal["info", "notice", "warning", "error"]

LONGEST = 10_000
"""Characters of a text that are kept."""


class Log:
    """The log of a run, opened for each line: nothing is held back when the process is killed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, level: Level, text: str) -> str | None:
        """Add a line, where there still is a run.

        Returns:
            Why that failed, in a few words; None where it did not.
        """
        row = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "level": level,
            "text": text[:LONGEST],
        }
        try:
            self._append(json.dumps(row).encode() + b"\n")
        except FileNotFoundError:
            # The run has been taken away, as where it could not begin.
            return None
        except OSError as error:
            return error.strerror or type(error).__name__
        return None

    def _append(self, line: bytes) -> None:
        # A link under that name, in a run that came from elsewhere, changes no file, and a pipe is not waited for.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(self.path, flags, 0o666), "r+b", buffering=0) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(0, "no regular file")
            torn = status.st_size > 0 and os.pread(file.fileno(), 1, status.st_size - 1) != b"\n"
            # In one call, so that a kill finds all of the line or nothing.
            file.write(b"\n" * torn + line)
