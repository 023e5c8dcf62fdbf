"""What libraries warn of: one line each on stderr, and nothing under `--quiet`."""

import logging
import sys
import warnings
from typing import Any

from ttrl_pop.text import shown

_state = {"installed": False, "quiet": False}


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


def _show(message: Warning | str, category: type[Warning], filename: str, *place: Any, **more: Any) -> None:
    if not _state["quiet"]:
        print(f"warning: {shown(' '.join(str(message).split()), limit=400)}", file=sys.stderr)
