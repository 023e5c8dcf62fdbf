"""Settings as arguments of a call → what the command line would have been given."""

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from ttrl_pop.cli.flags import SETTINGS
from ttrl_pop.cli.given import Given
from ttrl_pop.config import Config
from ttrl_pop.config_file import leaves
from ttrl_pop.errors import UsageError
from ttrl_pop.read.rows import Source
from ttrl_pop.settings import hint

Files: TypeAlias = str | Path | Sequence[str | Path] | None
"""TOML files of settings, a later one over those before it."""


@runtime_checkable
class Frame(Protocol):
    """A table of pandas, or one that gives its rows by the same call."""

    columns: Any

    def to_dict(self, orient: Any) -> Any: ...


Rows: TypeAlias = str | Path | Iterable[Mapping[str, Any]] | Frame
"""A file, `-` for standard input, rows, or a table of them."""


def given(settings: Mapping[str, Any], preset: str | None = None, config: Files = None) -> Given:
    """The sources of a configuration: a preset, files, and over them settings by the name of a flag (`minds`, `lr`), of
    a value (`steps`), or of a table (`vote={"grader": "exact"}`).

    Raises:
        UsageError: a name is none of these.
    """
    files = [config] if isinstance(config, str | Path) else config or ()
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in SETTINGS and name.partition(".")[0] not in Config.model_fields:
            raise UsageError(f"configuration: unknown key {name!r}{_meant(name)}")
        # `population` is the flag of a name, and a table.
        if name in SETTINGS and not isinstance(value, Mapping):
            values[SETTINGS[name].key] = _typed(name, value)
        else:
            values |= {key: _plain(leaf) for key, leaf in leaves(name, value)}
    return Given(preset, [Path(file) for file in files], values)


def source_of(given: Rows) -> Source:
    """A path as its text, a table as its rows, and rows as they are.

    Raises:
        UsageError: it is none of these.
    """
    if isinstance(given, os.PathLike):
        return os.fspath(given)
    if isinstance(given, Mapping):
        raise UsageError("rows must come in a list, got one dict; pass [row]")
    if isinstance(given, Frame):
        # A cell without a value is NaN in a table.
        return [{name: value for name, value in row.items() if not _is_nan(value)} for row in given.to_dict("records")]
    if not isinstance(given, str | Iterable):
        raise UsageError(f"a source must be a file's name or rows, got something of type {type(given).__name__}")
    return given


def rows_of_gold(gold: Rows | Mapping[str, Any]) -> Source:
    """Answers by problem id as rows; anything else as `source_of` has it."""
    if isinstance(gold, Mapping):
        return [{"id": problem, "answer": answer} for problem, answer in gold.items()]
    return source_of(gold)


def _typed(name: str, value: Any) -> Any:
    """The value that a flag of this name sets, of what Python has for it."""
    flag = SETTINGS[name]
    value = _plain(value)
    if flag.kind is bool and value is not None and not isinstance(value, bool):
        raise UsageError(f"configuration: {name} must be True or False, got {value!r}")
    return flag.value([value] if flag.kind == list[str] and isinstance(value, str) else value)


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value


def _meant(name: str) -> str:
    """Which argument an unknown one most likely stands for, as the end of an error."""
    near = difflib.get_close_matches(name, [*SETTINGS, *Config.model_fields], n=1)
    key = hint(name, Config, {})
    flags = [flag for flag, setting in SETTINGS.items() if setting.key == key]
    meant = [*near, *flags, *([key] if key else [])]
    return f"; did you mean {meant[0]!r}?" if meant else ""
