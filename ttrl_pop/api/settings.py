"""Settings as arguments of a call → what the command line would have been given."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ttrl_pop.cli.flags import SETTINGS
from ttrl_pop.cli.given import Given

Files: TypeAlias = str | Path | Sequence[str | Path] | None
"""TOML files of settings, a later one over those before it."""


def given(settings: Mapping[str, Any], preset: str | None = None, config: Files = None) -> Given:
    """The sources of a configuration: a preset, files, and over them settings by the name of a flag (`minds`, `lr`), of
    a value (`steps`), or of a table (`vote={"grader": "exact"}`)."""
    files = [config] if isinstance(config, str | Path) else config or ()
    values: dict[str, Any] = {}
    for name, value in settings.items():
        # `population` is the flag of a name, and a table.
        if name in SETTINGS and not isinstance(value, Mapping):
            values[SETTINGS[name].key] = SETTINGS[name].value(value)
        else:
            values |= _leaves(name, value)
    return Given(preset, [Path(file) for file in files], values)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, value
