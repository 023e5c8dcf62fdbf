"""Errors of transformers about a model, as the one line that a user can act on."""

from collections.abc import Iterator
from contextlib import contextmanager

import transformers

from ttrl_pop.errors import UsageError

_ASKS_TO_RUN_CODE = "trust_remote_code"
"""What every error of transformers names that wants to run code of a model."""

_LONGEST = 300
"""Characters of a library's reason that are shown."""


@contextmanager
def loading(what: str) -> Iterator[None]:
    """While active, transformers reads a model that may be anything: whatever it ends with is about the model.

    Args:
        what: the line's beginning, as in `model 'x' cannot be loaded`.

    Raises:
        UsageError: in place of any error but this one.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if _ASKS_TO_RUN_CODE in str(error):
            raise UsageError(code_refused(what)) from error
        raise UsageError(f"{what}: {reason(error)}") from error


def code_refused(what: str, part: str = "it") -> str:
    """The line about a model of which a part cannot be used without code of its own."""
    return f"{what}: {part} needs code of its own, which is never run; pass a model of a kind that transformers knows"


def reason(error: BaseException) -> str:
    """What an error says in its first line (and the next, where that is a heading), and its kind where that says little
    by itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    first = first if len(first) <= _LONGEST else f"{first[:_LONGEST]}…"
    return f"{type(error).__name__}: {first}" if isinstance(error, LookupError | AttributeError | TypeError) else first


def quiet_transformers() -> None:
    """stdout and stderr are ours: transformers' progress bars and advice would tear the live view."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
