"""Errors of the operating system, as the one line that a user can act on."""

import errno
import os
import re

from safetensors import SafetensorError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""What writing ends with on a disk that is full, over its quota or the limit on files, or has become read-only."""


def refusal(error: BaseException, place: object = None) -> str | None:
    """What the system has against what was tried, with the name of the file; None where it has nothing.

    A connection that broke is no such error: it belongs to an engine or a plug-in, and its traceback says to which.

    Args:
        place: named where the error names no file.
    """
    if isinstance(error, ConnectionError) or (number := _number(error)) is None:
        return None
    name = getattr(error, "filename", None) or place
    why = os.strerror(number)
    if number in NO_ROOM:
        why = f"cannot be written to ({why})"
    return why if name is None else f"{os.fsdecode(name) if isinstance(name, bytes) else name}: {why}"


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    # safetensors wraps the system's error, and its number is left in the text alone.
    found = re.search(r"os error (\d+)", str(error)) if isinstance(error, OSError | SafetensorError) else None
    return int(found[1]) if found else None
