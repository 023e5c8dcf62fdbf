"""A run's own files are data: code that they name is imported, and addresses and folders that they name are used, only
where the user has said so.

A plug-in is trusted where its name was typed on this command line, or stands in a file that --config names. A run that
names one was made on this machine by this user, which is remembered, or it came from elsewhere, and then --trust says
once that its names are known: that is remembered, too. The same holds for the servers that a backend asks, which are
told prompts and a key, and for folders that it writes to. The memory is `ttrl-pop/trusted` below `$XDG_STATE_HOME` or
`~/.local/state`: JSON lines, each with the path of a run and what may be used for it.
"""

import json
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from ttrl_pop.cli.given import Given
from ttrl_pop.config import Config
from ttrl_pop.errors import DamagedError, UsageError
from ttrl_pop.plugins import foreign, places
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.store.files import read_lines

NAMING = frozenset(
    (
        "population.name",
        "population.options",
        "backend",
        "backend_options",
        "vote.grader",
        "vote.reward",
        "vote.extract",
    )
)
"""Settings and tables by which a configuration names what is not part of this program."""


def check_trusted(
    run: RunDirectory, config: Config, given: Given, unused: Collection[str] = (), file: Path | None = None
) -> None:
    """Let no code be imported, no server asked and no folder written that nobody but the run's own files has named.

    Args:
        config: of the run, with what was typed.
        unused: settings of which the command imports nothing, or tables of them.
        file: where the configuration stands, if not in the run's own.

    Raises:
        UsageError: the files name code that is neither built in nor of an installed package, or an address or a folder,
            and that is neither typed nor trusted.
    """
    typed = {key for key, value in given.values().items() if value is not None}
    let = (*unused, *typed)
    code, where = (
        [
            f"{key} = {name}"
            for key, name in found.items()
            if not any(key == each or key.startswith(f"{each}.") for each in let)
        ]
        for found in (foreign(config), places(config))
    )
    texts = list(dict.fromkeys([*code, *where]))
    if not texts or set(texts) <= _trusted(run):
        return
    if not given.trust:
        what = " and ".join(
            ["code that is not part of this program"] * bool(code) + ["addresses or folders"] * bool(where)
        )
        raise UsageError(
            f"{file or run.config} names {what}: {'; '.join(texts)}. Pass --trust, "
            f"which {'imports' if code else 'uses'} it now and later, only if you know where the run is from"
        )
    remember(run, config)


def remember(run: RunDirectory, config: Config) -> None:
    """Note that what this run names may be used; a state folder that takes no files is no obstacle."""
    texts = [f"{key} = {name}" for key, name in (foreign(config) | places(config)).items()]
    if not texts or set(texts) <= _trusted(run):
        return
    with suppress(OSError, RuntimeError):
        path = _memory()
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"run": os.path.realpath(run.path), "code": texts}
        with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o600), "a") as file:
            file.write(json.dumps(row) + "\n")


def _trusted(run: RunDirectory) -> set[str]:
    """What may be used for this run, as `KEY = NAME`."""
    found: set[str] = set()
    with suppress(DamagedError, RuntimeError):
        for row in read_lines(_memory()):
            code: Any = row.get("code")
            if row.get("run") == os.path.realpath(run.path) and isinstance(code, list):
                found.update(text for text in code if isinstance(text, str))
    return found


def _memory() -> Path:
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "ttrl-pop" / "trusted"
