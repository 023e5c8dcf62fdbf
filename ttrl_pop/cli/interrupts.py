"""Ctrl-C and SIGTERM, so that none gets lost.

A KeyboardInterrupt that Python raises inside a destructor or a callback of a library is dropped there. The handler
therefore leaves a note as well, which the loops of the commands look at.
"""

import signal

_noted: list[int] = []


def install() -> None:
    """Make both signals interrupt the main thread."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def check() -> None:
    """Raise what a signal left behind.

    Raises:
        KeyboardInterrupt: a signal came since the last one that was seen.
    """
    if _noted:
        _noted.clear()
        raise KeyboardInterrupt


def _interrupt(number: int, frame: object) -> None:
    _noted.append(number)
    raise KeyboardInterrupt
