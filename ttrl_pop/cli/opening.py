"""A model, a run or a resumed run, opened and checked before anything is written."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ttrl_pop.cli import inputs
from ttrl_pop.cli.given import Given
from ttrl_pop.cli.inputs import ReadingInputs, RunInputs
from ttrl_pop.cli.trust import check_trusted, remember
from ttrl_pop.config import Config
from ttrl_pop.config_file import dump_config, load_config
from ttrl_pop.errors import UsageError
from ttrl_pop.model.prompts import tokenizer_fingerprint
from ttrl_pop.read.holdout import split
from ttrl_pop.read.problems import fingerprint, read_problems, write_gold, write_problems
from ttrl_pop.read.rows import unsaid
from ttrl_pop.run import environment
from ttrl_pop.run.session import Session, as_asked, check_trainable, open_session
from ttrl_pop.store import checkpoint, identity
from ttrl_pop.store.directory import ENVIRONMENT, HOLDOUT, HOLDOUT_GOLD, IDENTITY, RunDirectory, create
from ttrl_pop.store.identity import CONFIG, GOLD, PROBLEMS
from ttrl_pop.store.trained import check_model
from ttrl_pop.types import Problem

CHANGEABLE = ("steps", "guard.stop_on_collapse", "guard.until_settled", "device", "model", "track")
"""Settings that a run may go on with at other values; of a model, which may have moved, weights and tokenizer
are compared."""


Stage = Callable[[str], object]
"""Is told in a line of what may take long, as it begins."""


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A run that has been checked and whose directory exists."""

    session: Session
    run: RunDirectory
    resumed: bool
    changed: bool = False
    """The configuration differs from the one in the run directory."""
    outdated: bool = False
    """It ends at another step than before: answers that are there are not those of its end."""
    notice: str | None = None
    """What the user should know of a run that goes on in another way."""
    told: tuple[str, ...] = ()
    """What the user was told before there was a run directory with a log."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What `eval` and `sample` work with."""

    session: Session
    checkpoint: Path | None = None
    """Folder of the run's checkpoint, of which only the population's start is loaded; None is the base model."""
    notices: tuple[str, ...] = ()
    """What the user should know of the run."""


def create_run(given: RunInputs, stage: Stage = unsaid) -> PreparedRun:
    """Load the model and, where it goes with the inputs, create the run directory.

    Args:
        stage: is told in a line of what may take long, as it begins.

    Raises:
        UsageError: nothing has been written.
    """
    config, problems = given.config, given.problems
    check_trainable(config)
    check_tracked(config)
    session = open_session(config, problems, adapter=True, stage=stage, held=given.held)
    files = {
        CONFIG: dump_config(session.config),
        PROBLEMS: "".join(f"{line}\n" for line in write_problems(session.problems)),
        GOLD: "".join(f"{line}\n" for line in write_gold(problems.answers)),
        HOLDOUT: "".join(f"{line}\n" for line in write_problems(session.held.problems if session.held else ())),
        HOLDOUT_GOLD: "".join(f"{line}\n" for line in (write_gold(session.held.gold) if session.held else ())),
        ENVIRONMENT: environment.dumps(environment.environment(session.config.backend)),
    }
    model = session.policy.model
    known = identity.of(
        model.fingerprint, tokenizer_fingerprint(model), fingerprint(session.problems), problems.source, files
    )
    run = create(given.out, given.source, {**files, IDENTITY: known.dumps()})
    remember(run, session.config)
    return PreparedRun(session, run, resumed=False, told=given.notices)


def check_tracked(config: Config) -> None:
    """
    Raises:
        UsageError: there is no such tracker, or it is not installed.
    """
    if config.track:
        # Not before it is asked for: accelerate takes a while to start.
        from ttrl_pop.cli import trackers

        trackers.check(config.track)


def prepare_resume(
    path: Path,
    source: str | None,
    gold: str | None,
    given: Given,
    stage: Stage = unsaid,
) -> PreparedRun:
    """Open a run directory to go on with it: same configuration, model and problems.

    Args:
        stage: is told in a line of what may take long, as it begins.

    Raises:
        UsageError: it is no run directory, or something has changed that may not. Nothing has been written.
    """
    run = RunDirectory(path)
    if not os.path.lexists(path):
        raise UsageError(f"--resume {path}: no such folder; pass the directory of a run")
    if not os.path.lexists(run.identity):
        raise UsageError(f"--resume {path}: not a run directory (no {run.identity.name} in it)")
    known = identity.load(run)
    given.check_nothing_beside("--resume")
    if gold is not None:
        raise UsageError(
            "--resume takes its gold answers from the run directory; leave --gold out (ttrl-pop eval takes other ones)"
        )
    text = identity.read(run, known, CONFIG)
    saved, config = load_config(run.config, {}, text), given.config(run.config, text)
    check_trusted(run, config, given)
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
    given_problems = None if source is None else _trained_of(source, config)
    stored = inputs.stored_problems(run, known)
    # The flags for reading were for PROBLEMS of this command, not for the run.
    reading, config = config, _going_on(saved, config)
    session = open_session(
        config, stored, adapter=True, settled=True, stage=stage, held=inputs.stored_holdout(run, known)
    )
    check_model(session.policy.model, known, session.config.model, f"--resume {path}")
    if (
        given_problems
        and fingerprint(as_asked(given_problems, reading, session.policy.model.tokenizer)) != known.problems
    ):
        raise UsageError(f"--resume {path}: {source} holds other problems than the run; leave PROBLEMS out")
    notice = None
    if saved.device not in ("auto", session.config.device):
        notice = (
            f"the run goes on on {session.config.device}, it was on {saved.device}: what follows differs by rounding "
            "from a run that stayed there"
        )
    outdated = (config.steps, config.guard.until_settled) != (saved.steps, saved.guard.until_settled)
    return PreparedRun(session, run, resumed=True, changed=config != saved, outdated=outdated, notice=notice)


@contextmanager
def opened_for_reading(given: ReadingInputs, stage: Stage = unsaid) -> Iterator[Opened]:
    """A session for `eval` and `sample`, of the base model or of a run's checkpoint; its engine is closed in the end.

    Args:
        stage: is told in a line of what may take long, as it begins.

    Raises:
        UsageError: the model or the run does not go with the inputs.
    """
    if given.run is None:
        session = open_session(given.config, given.problems, adapter=False, rewards=given.rewards, stage=stage)
        with closing(session.backend):
            yield Opened(session)
        return
    flag = f"--run {given.run.path}"
    notices: list[str] = []
    folder = given.checkpoint or checkpoint.newest(given.run, notices.append)
    known = identity.load(given.run)
    session = open_session(given.config, given.problems, adapter=True, rewards=given.rewards, stage=stage)
    with closing(session.backend):
        check_model(session.policy.model, known, session.config.model, flag)
        checkpoint.load_start(folder, session.policy)
        yield Opened(session, folder, tuple(notices))


def _trained_of(source: str, config: Config) -> Sequence[Problem]:
    """The problems of a source that a run of this configuration trains on."""
    problems = read_problems(source, config.problems)
    share = config.holdout
    return (split(problems, share, config.seed)[0] if isinstance(share, float) else problems).problems


def _going_on(saved: Config, config: Config) -> Config:
    """The configuration of a run that goes on: as it was, but for what may change."""
    tables = {key.partition(".")[0] for key in CHANGEABLE}
    return saved.model_copy(update={name: getattr(config, name) for name in tables})
