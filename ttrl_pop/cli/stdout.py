"""Standard output as a stream whose reader may leave: that is a quiet end, and no other broken pipe is."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from ttrl_pop.errors import TtrlPopError


def install() -> None:
    """Let whatever this process prints, help texts among it, pass through a `StandardOutput`."""
    # A stream that was closed (>&-) is None, and its number would go to the next file that is opened.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    sys.stdout = cast(TextIO, StandardOutput(sys.stdout))


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
            self._give_up()
            raise SystemExit(0) from None
        except OSError as error:
            self._give_up()
            raise TtrlPopError(f"standard output cannot be written to ({error.strerror}); send it elsewhere") from error

    def _give_up(self) -> None:
        # What is left in the buffer goes nowhere: Python would complain when it flushes stdout at exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
