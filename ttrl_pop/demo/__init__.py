"""The problems of `ttrl-pop demo`, their gold answers and its settings: files, which examples/ links to."""

from importlib.resources import files
from pathlib import Path

PROBLEMS, GOLD, CONFIG = "times-table.jsonl", "times-table.gold.jsonl", "times-table.toml"


def path(name: str) -> Path:
    """Where one of the files is."""
    return Path(str(files(__name__) / name))
