"""Settings as arguments of a call → what the command line would have been given."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ttrl_pop.cli.flags import SETTINGS
from ttrl_pop.cli.given import Given


def given(settings: Mapping[str, Any], config: str | Path | None = None) -> Given:
    """The sources of a configuration: a file, and over it settings by the name of a flag (`minds`, `lr`), of a value
    (`steps`), or of a table (`vote={"grader": "exact"}`)."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        # `population` is the flag of a name, and a table.
        if name in SETTINGS and not isinstance(value, Mapping):
            values[SETTINGS[name].key] = SETTINGS[name].value(value)
        else:
            values |= _leaves(name, value)
    return Given(files=() if config is None else (Path(config),), overrides=values)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, value
