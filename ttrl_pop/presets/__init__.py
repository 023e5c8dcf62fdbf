"""Settings to begin with, by name: a TOML file each, as `--preset` takes them. They lie below every other source."""

from importlib.resources import files

from ttrl_pop.errors import UsageError

NAMES = ("math-chat", "math-raw", "choice", "tiny")


def preset(name: str) -> str:
    """The TOML text of a preset.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in NAMES:
        raise UsageError(f"preset must be one of {', '.join(NAMES)}, got {name!r}")
    return (files(__name__) / f"{name}.toml").read_text(encoding="utf-8")
