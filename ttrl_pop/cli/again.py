"""`--resume-or-new`: whether a run has begun, and what of a command that began it still counts."""

import os
from dataclasses import replace
from pathlib import Path

from ttrl_pop.cli.given import Given
from ttrl_pop.cli.inputs import flat
from ttrl_pop.store.directory import RunDirectory, clear_unfinished

STILL_COUNT = ("steps", "guard.stop_on_collapse", "guard.until_settled", "track")
"""Settings of the command that a run goes on with."""


def has_begun(path: Path) -> bool:
    """Whether a run is at `path`. What is left of one whose process ended before there was a run is removed."""
    if os.path.lexists(RunDirectory(path).identity):
        return True
    clear_unfinished(path)
    return False


def changeable(given: Given) -> Given:
    """What was typed of `STILL_COUNT`; all other settings are the run's own."""
    values = flat(given.config().model_dump())
    known = {key: values[key] for key in STILL_COUNT}
    return replace(given, preset=None, files=(), overrides=known, settings=())
