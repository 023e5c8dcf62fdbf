"""A stream whose reader may leave, and a console on it that takes no text for markup."""

from collections.abc import Callable
from typing import Protocol, TextIO, cast, runtime_checkable

from rich.console import Console


@runtime_checkable
class TextStream(Protocol):
    """What is needed of `sys.stderr` or of whatever stands in for it."""

    @property
    def closed(self) -> bool: ...
    def write(self, text: str, /) -> int: ...
    def flush(self) -> None: ...
    def isatty(self) -> bool: ...


def console_on(stream: TextStream) -> Console:
    """A console that takes no text for markup, and for which a reader that went away is no error."""
    return Console(file=cast(TextIO, Deafened(stream)), markup=False, emoji=False, highlight=False)


class Deafened:
    """A text stream for which a reader that went away is no error: from then on it drops what it is given."""

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream
        self._open = True
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding)))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def isatty(self) -> bool:
        return not self._stream.closed and self._stream.isatty()

    def _try(self, action: Callable[[], object]) -> None:
        if not self._open or self._stream.closed:
            return
        try:
            action()
        except OSError:
            self._open = False
