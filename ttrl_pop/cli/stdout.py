"""Standard streams whose other end may be closed, full or gone: for a reader who leaves that is a quiet end."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from ttrl_pop.errors import TtrlPopError


def install() -> None:
    """Let whatever this process prints, help texts among it, pass through a `StandardOutput` and a `StandardError`."""
    # A stream that was closed (>&-) is None, and its number would go to the next file that is opened. In this order,
    # each gets its own.
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = cast(TextIO, StandardOutput(sys.stdout or open(os.devnull, "w")))  # noqa: SIM115
    sys.stderr = cast(TextIO, StandardError(sys.stderr or open(os.devnull, "w")))  # noqa: SIM115


class StandardOutput:
    """A text stream that ends the process, with exit code 0 and in silence, once nobody reads it any more.

    It is caught here, where it is known whose pipe broke: a pipe to an engine, to a worker or to what a plug-in started
    raises the same error, and there it is one.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if text == "":
            # The parser asks in this way whether text is taken at all, and hears no error.
            return 0
        with self._ends():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._ends():
            self._stream.flush()

    @contextmanager
    def _ends(self) -> Iterator[None]:
        """Writing ends as whoever started the command should see it.

        Raises:
            SystemExit: the reader has left.
            TtrlPopError: the file takes no more, say on a full disk.
        """
        try:
            yield
        except BrokenPipeError:
            _lead_nowhere(self._stream)
            raise SystemExit(0) from None
        except OSError as error:
            _lead_nowhere(self._stream)
            raise TtrlPopError(f"standard output cannot be written to ({error.strerror}); send it elsewhere") from error


class StandardError:
    """A text stream that drops what its other end does not take: what is said beside the data ends no command."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            _lead_nowhere(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _lead_nowhere(self._stream)


def _lead_nowhere(stream: TextIO) -> None:
    """Let what is left in a stream's buffer go nowhere: Python would complain when it flushes it at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
