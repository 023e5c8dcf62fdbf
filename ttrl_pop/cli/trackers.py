"""Charts of a run elsewhere: TensorBoard, W&B, trackio and whatever else `accelerate.tracking` knows, by name.

A tracker is given the numbers of each row of metrics.jsonl, once. What it was given, and the name of its chart, stand
in RUN/tracking.json, so that a run that goes on goes on in the same chart. After a kill nobody knows whether the last
row arrived: TensorBoard then drops what it holds from there on, trackio's chart is written anew, and W&B takes a step
that it has for the same one. MLflow, Aim and ClearML begin a new chart at every start, and get all steps. A tracker
that fails stops nothing: that is said once, and what it has missed is given to it when the run goes on.
"""

import atexit
import contextlib
import io
import json
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType

from ttrl_pop.cli.inputs import flat
from ttrl_pop.config import Config
from ttrl_pop.errors import DamagedError, UsageError
from ttrl_pop.store import identity, reading
from ttrl_pop.store.directory import RunDirectory

PROJECT = "ttrl-pop"
"""What trackers sort their charts by."""

FILE = "tracking.json"

PACKAGES = {"comet_ml": "comet-ml"}
"""Package of a tracker, where it has another name."""

RENEWED = ("mlflow", "aim", "clearml")
"""Trackers that accelerate begins a new chart of at every start, which is given all steps."""

_CHART = re.compile(r"[0-9a-f]{32}")

Row = Mapping[str, Any]


def check(names: Sequence[str]) -> None:
    """Refuse trackers that there are not.

    Raises:
        UsageError: a name that accelerate does not know, or whose package is not installed.
    """
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UsageError(f"track: no tracker {name!r}; there are {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
        if not _is_installed(name):
            raise UsageError(f"track: {name} is not installed; run: pip install {PACKAGES.get(name, name)}")


@contextmanager
def tracked(
    run: RunDirectory, config: Config, rows: Sequence[Row], warning: Callable[[str], None], quiet: bool
) -> Iterator[Callable[[Row], None]]:
    """While active, what is given to it goes to the trackers that the configuration names.

    Args:
        rows: of metrics.jsonl, of the steps done.
        warning: is told in a line of a tracker that fails.
        quiet: drop what trackers print, which else goes to stderr.

    Yields:
        What takes the row of each further step.
    """
    trackers = _Trackers(run, config, warning, quiet)
    trackers.open(rows)
    try:
        yield trackers.log
    finally:
        trackers.close()


class _Trackers:
    """The trackers of a run, as long as they do not fail."""

    def __init__(self, run: RunDirectory, config: Config, warning: Callable[[str], None], quiet: bool) -> None:
        self._run = run
        self._config = config
        self._warning = warning
        self._quiet = quiet
        self._open: dict[str, GeneralTracker] = {}
        known = self._load()
        self._chart = known["chart"]
        self._is_clean: bool = known["closed"]
        self._given: dict[str, int] = known["given"]
        """Step up to which each tracker was given rows."""

    def open(self, rows: Sequence[Row]) -> None:
        """Begin each chart, or go on with it, and give it the rows that it has missed."""
        # For its logging alone. Which device torch takes is none of its business.
        PartialState(cpu=True)
        done = len(rows)
        for name in dict.fromkeys(self._config.track):
            with self._guarded(name):
                if not _is_installed(name):
                    raise ModuleNotFoundError("its package is not installed")
                held = self._held(name, done)
                begun = name in self._given
                kind = LOGGER_TYPE_TO_CLASS[name]
                tracker = kind(*_place(kind, name, self._run), **self._arguments(name, held))
                tracker.start()
                self._open[name] = tracker
                self._given[name] = held
                if not begun:
                    settings = flat(self._config.model_dump(mode="json"))
                    tracker.store_init_configuration({key: _plain(value) for key, value in settings.items()})
        # Hooks run in reverse: what theirs print must not follow our data.
        atexit.register(_leave_stdout, self._quiet)
        self._note(closed=False)
        for row in rows:
            self._give(row)
        self._note(closed=False)

    def log(self, row: Row) -> None:
        """Give the row of a step to all trackers."""
        self._give(row)
        self._note(closed=False)

    def close(self) -> None:
        """End all charts, with what is on its way to them."""
        for name, tracker in [*self._open.items()]:
            with self._guarded(name):
                tracker.finish()
        self._note(closed=True)

    def _give(self, row: Row) -> None:
        step = int(row["step"])
        numbers = {key: value for key, value in row.items() if key != "step" and isinstance(value, int | float)}
        for name, tracker in [*self._open.items()]:
            if step > self._given[name]:
                with self._guarded(name):
                    tracker.log(numbers, step=step)
                    self._given[name] = step

    def _held(self, name: str, done: int) -> int:
        """Step up to which a chart holds what it was given, for sure, once it is opened; `done` steps count."""
        given = self._given.get(name, 0)
        if name == "tensorboard":
            return min(given, done)
        if name == "trackio" and (given > done or not self._is_clean):
            _delete_from_trackio(self._name)
            self._given.pop(name, None)
        elif name in RENEWED:
            self._given.pop(name, None)
        return self._given.get(name, 0)

    @property
    def _name(self) -> str:
        """Name of the chart, for people."""
        return f"{self._run.path.resolve().name}-{self._chart[:8]}"

    def _arguments(self, name: str, held: int) -> dict[str, Any]:
        """What a tracker takes beside its place, so that the same chart goes on."""
        match name:
            case "tensorboard":
                return {"purge_step": held + 1}
            case "trackio":
                return {"name": self._name, "resume": "allow"}
            case "wandb":
                return {"id": self._chart, "name": self._name, "resume": "allow", "dir": str(self._run.path)}
            case "swanlab":
                return {"id": self._chart, "experiment_name": self._name, "resume": "allow"}
            case "comet_ml":
                return {"experiment_key": self._chart}
            case "dvclive":
                return {"dir": str(self._run.path / "dvclive"), "resume": held > 0}
        return {}

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Let a tracker print on stderr at most, and fail alone."""
        try:
            # stdout carries data.
            with contextlib.redirect_stdout(io.StringIO() if self._quiet else sys.stderr):
                yield
        except Exception as error:
            self._open.pop(name, None)
            reason = " ".join(str(error).split()) or type(error).__name__
            self._warning(f"tracker {name} failed ({reason}); the run goes on without it")

    def _load(self) -> dict[str, Any]:
        """What RUN/tracking.json says, or what it says of a chart that has not begun."""
        new = {"chart": uuid.uuid4().hex, "closed": True, "given": {}}
        known = identity.load(self._run)
        if FILE not in known.files:
            return new
        path = self._run.path / FILE
        try:
            identity.check(self._run, known, FILE)
            found = reading.read_object(path)
        except DamagedError as error:
            self._warning(f"{path}: {error.reason.partition(';')[0]}; charts begin anew")
            return new
        given = found.get("given")
        if not (
            isinstance(chart := found.get("chart"), str)
            and _CHART.fullmatch(chart)
            and isinstance(given, dict)
            and all(type(step) is int and step >= 0 for step in given.values())
        ):
            self._warning(f"{path}: is not what a run writes; charts begin anew")
            return new
        return {"chart": chart, "closed": found.get("closed") is True, "given": given}

    def _note(self, closed: bool) -> None:
        state = {"chart": self._chart, "closed": closed, "given": self._given}
        identity.record(self._run, FILE, (json.dumps(state) + "\n").encode())


def _leave_stdout(quiet: bool) -> None:
    """From now on nothing that is printed reaches stdout."""
    sys.stdout.flush()
    sys.stdout = io.StringIO() if quiet else sys.stderr


def _is_installed(name: str) -> bool:
    # What a program has registered with accelerate is there.
    return name in map(str, get_available_trackers()) or name not in map(str, LoggerType)


def _place(kind: type[GeneralTracker], name: str, run: RunDirectory) -> tuple[str, ...] | tuple[str, Path]:
    """Project of a chart or, where charts are files, the folder and its name in it."""
    if name == "tensorboard":
        return name, run.path
    return (PROJECT, run.path) if kind.requires_logging_directory else (PROJECT,)


def _delete_from_trackio(name: str) -> None:
    import trackio

    for run in trackio.Api().runs(PROJECT):
        if run.name == name:
            run.delete()


def _plain(value: Any) -> bool | int | float | str:
    """A setting as every tracker takes it."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)
