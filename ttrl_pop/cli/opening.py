"""A model, a run or a resumed run, opened and checked before anything is written."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ttrl_pop.cli import inputs
from ttrl_pop.cli.given import Given
from ttrl_pop.cli.inputs import ReadingInputs, RunInputs
from ttrl_pop.config import ProblemsConfig
from ttrl_pop.config_file import dump_config, load_config
from ttrl_pop.errors import UsageError
from ttrl_pop.read.problems import read_problems, write_gold, write_problems
from ttrl_pop.run.session import Session, check_trainable, open_session
from ttrl_pop.store import checkpoint
from ttrl_pop.store.directory import RunDirectory, create

CHANGEABLE = ("steps", "guard.stop_on_collapse", "device")
"""Settings that a run may go on with at other values."""


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A run that has been checked and whose directory exists."""

    session: Session
    run: RunDirectory
    resumed: bool
    changed: bool = False
    """The configuration differs from the one in the run directory."""
    notice: str | None = None
    """What the user should know of a run that goes on in another way."""


def create_run(given: RunInputs) -> PreparedRun:
    """Load the model and, where it goes with the inputs, create the run directory.

    Raises:
        UsageError: nothing has been written.
    """
    config, problems = given.config, given.problems
    check_trainable(config)
    session = open_session(config, problems, adapter=True)
    identity = {"model": session.policy.model.fingerprint, "problems": problems.fingerprint}
    files = {
        "config.toml": dump_config(session.config),
        "problems.jsonl": "".join(f"{line}\n" for line in write_problems(problems.problems)),
        "gold.jsonl": "".join(f"{line}\n" for line in write_gold(problems.answers)),
        "identity.json": json.dumps(identity, indent=1) + "\n",
    }
    return PreparedRun(session, create(given.out, given.source, files), resumed=False)


def prepare_resume(
    path: Path,
    source: str | None,
    gold: str | None,
    given: Given,
) -> PreparedRun:
    """Open a run directory to go on with it: same configuration, model and problems.

    Raises:
        UsageError: it is no run directory, or something has changed that may not. Nothing has been written.
    """
    run = RunDirectory(path)
    identity = read_identity(run, f"--resume {path}")
    if given.config_file is not None:
        raise UsageError("--resume takes its configuration from the run directory; leave --config out")
    if gold is not None:
        raise UsageError(
            "--resume takes its gold answers from the run directory; leave --gold out (ttrl-pop eval takes other ones)"
        )
    saved = load_config(run.config, {})
    config = given.config(run.config)
    for key, before, now in inputs.changes(saved, config):
        if key not in CHANGEABLE and not key.startswith("problems."):
            raise UsageError(f"--resume {path}: {key} was {before!r}, cannot become {now!r}; start a new run")
    done = checkpoint.latest(run) or 0
    if config.steps < done:
        raise UsageError(f"--resume {path}: the run has done {done} steps; --steps cannot go back to {config.steps}")
    inputs.check_writable(path, f"--resume {path}")
    # Before the model is loaded; the lock that counts is the one that `run` holds.
    with run.lock():
        pass
    if source is not None and read_problems(source, config.problems).fingerprint != identity["problems"]:
        raise UsageError(f"--resume {path}: {source} holds other problems than the run; leave PROBLEMS out")
    stored = read_problems(str(run.problems), ProblemsConfig(), str(run.gold) if run.gold.is_file() else None)
    if stored.fingerprint != identity["problems"]:
        raise UsageError(f"--resume {path}: {run.problems.name} in it has been changed; start a new run")
    # The flags for reading were for PROBLEMS of this command, not for the run.
    config = saved.model_copy(update={"steps": config.steps, "guard": config.guard, "device": config.device})
    session = open_session(config, stored, adapter=True)
    check_model(session, identity, f"--resume {path}")
    notice = None
    if saved.device not in ("auto", session.config.device):
        notice = (
            f"the run goes on on {session.config.device}, it was on {saved.device}: what follows differs by rounding "
            "from a run that stayed there"
        )
    return PreparedRun(session, run, resumed=True, changed=config != saved, notice=notice)


def open_for_reading(given: ReadingInputs) -> tuple[Session, Path | None]:
    """A session for `eval` and `sample`, and the run's checkpoint, of which only the population's start is loaded."""
    if given.run is None:
        return open_session(given.config, given.problems, adapter=False, rewards=given.rewards), None
    flag = f"--run {given.run.path}"
    folder = given.checkpoint or checkpoint.newest(given.run)
    identity = read_identity(given.run, flag)
    session = open_session(given.config, given.problems, adapter=True, rewards=given.rewards)
    check_model(session, identity, flag)
    checkpoint.load_start(folder, session.policy)
    return session, folder


def read_identity(run: RunDirectory, flag: str) -> dict[str, str]:
    """Fingerprints of the model and the problems of a run."""
    if not run.identity.is_file():
        raise UsageError(f"{flag}: not a run directory (no {run.identity.name} in it)")
    try:
        identity: dict[str, str] = json.loads(run.identity.read_text())
    except ValueError as error:
        raise UsageError(f"{flag}: {run.identity.name} in it has been changed ({error})") from error
    return identity


def check_model(session: Session, identity: Mapping[str, str], flag: str) -> None:
    """Refuse to go on with another model than the run's.

    Raises:
        UsageError: its weights, or their type, are not those of the run.
    """
    if session.policy.model.fingerprint != identity["model"]:
        raise UsageError(
            f"{flag}: model {session.config.model!r} is not the one of the run (other weights, or another dtype)"
        )
