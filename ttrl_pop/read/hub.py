"""Rows of a data set on the hub: `hf:NAME[:config][:split]`."""

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from ttrl_pop.errors import UsageError
from ttrl_pop.read.lines import PATH_LIMIT, source_name
from ttrl_pop.text import shown

DatasetLoader: TypeAlias = Callable[[str, str | None, str | None], Iterable[Any]]
"""(name, config, split) → the rows of that split; where it is None, a dict from each split to its rows."""

_SPLIT = re.compile(r"(test|train|validation|dev)(\[.*\])?")


def hub_rows(source: str, load: DatasetLoader) -> Iterable[Any]:
    """Rows of the split that `source` names, else of `test`, else of `train`.

    Raises:
        UsageError: no data set is named, or it has neither split.
    """
    name, _, rest = source.removeprefix("hf:").partition(":")
    config, split = ("", rest) if _SPLIT.fullmatch(rest) else rest.partition(":")[::2]
    if not name:
        raise UsageError(f"{source_name(source)}: no dataset name. Write hf:NAME[:config][:split].")
    found = load(name, config or None, split or None)
    if not isinstance(found, dict):
        return found
    for default in ("test", "train"):
        if default in found:
            rows: Iterable[Any] = found[default]
            return rows
    splits = ", ".join(map(shown, found))
    raise UsageError(f"{source_name(source)}: no test or train split (found: {splits}). Write hf:NAME:config:split.")


def load_from_hub(name: str, config: str | None, split: str | None) -> Iterable[Any]:
    """Load a data set by the datasets package.

    Raises:
        UsageError: the package is not there, or the data set cannot be loaded.
    """
    place = f"hf:{shown(name, limit=PATH_LIMIT)}"
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"{place}: needs the datasets package. Install ttrl-pop[hub].") from error
    try:
        rows: Iterable[Any] = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = shown(" ".join(str(error).split()), limit=300)
        raise UsageError(f"{place}: cannot be loaded ({reason}).") from error
    return rows
