"""What a shell offers behind a flag: names that are built in or installed, presets, settings.

Nothing here may fail: a shell shows whatever it prints.
"""

from collections.abc import Callable, Iterator

KINDS = {
    "population": "population",
    "backend": "backend",
    "grader": "grader",
    "reward": "reward",
    "extract": "extractor",
}
"""Flag → the kind of what it names."""


def names(flag: str) -> Callable[[str], list[str]]:
    """What offers the names that a flag takes."""

    def offer(incomplete: str) -> list[str]:
        from importlib.metadata import entry_points

        from ttrl_pop.plugins import ALSO, BUILT_IN

        kind = KINDS[flag]
        installed = sorted({point.name for point in entry_points(group=f"ttrl_pop.{kind}s")})
        others = ["auto"] if kind == "backend" else [name for name in ALSO.get(kind, ()) if name.isalpha()]
        return [name for name in dict.fromkeys([*others, *BUILT_IN[kind], *installed]) if name.startswith(incomplete)]

    return offer


def presets(incomplete: str) -> list[str]:
    """Presets that begin with what was typed."""
    from ttrl_pop.presets import NAMES

    return [name for name in NAMES if name.startswith(incomplete)]


def settings(incomplete: str) -> list[tuple[str, str]]:
    """`KEY=` of each setting that begins with what was typed, with its meaning."""
    return [(f"{key}=", meaning) for key, meaning in _settings() if f"{key}=".startswith(incomplete)]


def _settings() -> Iterator[tuple[str, str]]:
    from ttrl_pop.config import Config
    from ttrl_pop.settings import tables

    for table in tables(Config()):
        for setting in table.settings:
            yield f"{table.name}.{setting.name}".lstrip("."), setting.meaning
