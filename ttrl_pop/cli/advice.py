"""What libraries warn of: one line each on stderr, and nothing under `--quiet`."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ttrl_pop.text import shown

_state = {"installed": False, "quiet": False}
_listeners: list[Callable[[str], None]] = []


def install() -> None:
    """Let what libraries warn of from now on in this process go through here."""
    _state["installed"] = True
    warnings.showwarning = _show


def hush(quiet: bool) -> bool:
    """Take in the flag `--quiet`."""
    _state["quiet"] = quiet
    if quiet and _state["installed"]:
        logging.disable(logging.WARNING)
    return quiet


@contextmanager
def overheard(listener: Callable[[str], None]) -> Iterator[None]:
    """While active, `listener` is told of every warning as well, quiet or not."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def _show(message: Warning | str, category: type[Warning], filename: str, *place: Any, **more: Any) -> None:
    text = shown(" ".join(str(message).split()), limit=400)
    for listener in _listeners:
        listener(text)
    if not _state["quiet"]:
        print(f"warning: {text}", file=sys.stderr)
