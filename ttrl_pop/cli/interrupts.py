"""Ctrl-C and SIGTERM, so that none gets lost.

A KeyboardInterrupt that Python raises inside a destructor or a callback of a library is dropped there. The handler
therefore leaves a note as well, which the loops of the commands look at.
"""

import signal

_noted: list[int] = []


def install(once: bool = False) -> None:
    """Make both signals interrupt the main thread; with `once` the first one alone, as where a launcher sends its own
    after the user's."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt_once if once else _interrupt)


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


def _interrupt_once(number: int, frame: object) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    _interrupt(number, frame)
