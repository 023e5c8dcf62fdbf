"""Rows of a data set on the hub: `hf:NAME[@REVISION][:config][:split]`."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from ttrl_pop.errors import UsageError
from ttrl_pop.read.lines import PATH_LIMIT, source_name
from ttrl_pop.text import shown

DatasetLoader: TypeAlias = Callable[[str, str | None, str | None, str | None], Iterable[Any]]
"""(name, config, split, revision) → the rows of that split; where it is None, a dict from each split to its rows."""

Resolver: TypeAlias = Callable[[str, str | None], str | None]
"""(name, revision or None for the newest) → the commit that it stands for; None where the hub does not say."""

HUB_TIMEOUT = 10.0
"""Seconds that the hub has to say which commit a revision is."""

_SPLIT = re.compile(r"(test|train|validation|dev)(\[.*\])?")


@dataclass(frozen=True, slots=True)
class HubRows:
    """Rows of a data set, and what leads to the very same ones again."""

    rows: Iterable[Any]
    source: str
    """As it was named, with the commit in the place of the revision, where that is known."""


def hub_rows(source: str, load: DatasetLoader, resolve: Resolver) -> HubRows:
    """Rows of the split that `source` names, else of `test`, else of `train`.

    Raises:
        UsageError: no data set is named, or it has neither split.
    """
    place, _, rest = source.removeprefix("hf:").partition(":")
    name, _, revision = place.partition("@")
    config, split = ("", rest) if _SPLIT.fullmatch(rest) else rest.partition(":")[::2]
    if not name:
        raise UsageError(f"{source_name(source)}: no dataset name. Write hf:NAME[@REVISION][:config][:split].")
    # Asked for first, so that the rows are those of the commit that is kept.
    commit = resolve(name, revision or None) or revision
    kept = ":".join(part for part in (f"hf:{name}@{commit}" if commit else f"hf:{name}", rest) if part)
    found = load(name, config or None, split or None, commit or None)
    if not isinstance(found, dict):
        return HubRows(found, kept)
    for default in ("test", "train"):
        if default in found:
            return HubRows(found[default], kept)
    splits = ", ".join(map(shown, found))
    raise UsageError(f"{source_name(source)}: no test or train split (found: {splits}). Write hf:NAME:config:split.")


def resolve_on_hub(name: str, revision: str | None) -> str | None:
    """The commit that a revision of a data set stands for now; None where the hub cannot be asked, as its cache may
    have the data set all the same."""
    import huggingface_hub

    try:
        commit: str | None = huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=HUB_TIMEOUT).sha
    except Exception:
        # Who loads it says what is wrong with it.
        return None
    return commit


def load_from_hub(name: str, config: str | None, split: str | None, revision: str | None) -> Iterable[Any]:
    """Load a data set by the datasets package.

    Raises:
        UsageError: the data set cannot be loaded.
    """
    import datasets

    try:
        rows: Iterable[Any] = datasets.load_dataset(name, config, split=split, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = shown(" ".join(str(error).split()), limit=300)
        raise UsageError(f"hf:{shown(name, limit=PATH_LIMIT)}: cannot be loaded ({reason}).") from error
    return rows
