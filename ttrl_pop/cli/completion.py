"""What a shell offers behind a flag: names that are built in or installed, presets, settings. Of these it shows what
begins as what was typed."""

from collections.abc import Callable

KINDS = {
    "population": "population",
    "backend": "backend",
    "grader": "grader",
    "reward": "reward",
    "extract": "extractor",
}
"""Flag → the kind of what it names."""


def names(flag: str) -> Callable[[], list[str]]:
    """What offers the names that a flag takes."""

    def offer() -> list[str]:
        from ttrl_pop.plugins import ALSO, BUILT_IN, installed

        kind = KINDS[flag]
        others = ["auto"] if kind == "backend" else [name for name in ALSO.get(kind, ()) if name.isalpha()]
        return [*dict.fromkeys([*others, *BUILT_IN[kind], *installed(kind)])]

    return offer


def presets() -> list[str]:
    """All presets."""
    from ttrl_pop.presets import NAMES

    return [*NAMES]


def settings() -> list[tuple[str, str]]:
    """`KEY=` of each setting, with its meaning."""
    from ttrl_pop.config import Config
    from ttrl_pop.settings import tables

    return [
        (f"{table.name}.{setting.name}=".lstrip("."), setting.meaning)
        for table in tables(Config())
        for setting in table.settings
    ]
