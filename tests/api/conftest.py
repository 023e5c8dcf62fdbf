"""What tests of Python calls share with those of commands: a tiny model, and a run of it."""

from cli.conftest import copied, place, trained

__all__ = ["copied", "place", "trained"]
