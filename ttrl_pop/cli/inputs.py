"""What the user gave, read and checked as far as that goes without a model, and therefore at once.

Nothing here imports torch: a mistyped path or key is reported in a fraction of a second.
"""

import os
import re
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttrl_pop.cli.given import Given
from ttrl_pop.cli.trust import check_trusted
from ttrl_pop.config import Config, ProblemsConfig
from ttrl_pop.config_file import load_config
from ttrl_pop.errors import UsageError
from ttrl_pop.read import holdout
from ttrl_pop.read.problems import read_problems
from ttrl_pop.read.rows import Notice, Source, unsaid
from ttrl_pop.store import identity
from ttrl_pop.store.directory import RunDirectory, find
from ttrl_pop.store.identity import GOLD, PROBLEMS, Identity
from ttrl_pop.study.cells import STUDY
from ttrl_pop.text import shown
from ttrl_pop.types import ProblemSet
from ttrl_pop.vote.rewards.base import needs_gold

FIXED = ("population.name", "population.options.", "learn.lora.")
"""Settings that belong to the trained weights of a run, or how their keys begin."""


_PERCENT = re.compile(r"\d+(?:\.\d+)?\s*%")


@dataclass(frozen=True, slots=True)
class RunInputs:
    """What a new run is made from."""

    config: Config
    problems: ProblemSet
    source: str
    """Name after which a run directory is called."""
    out: Path | None
    """None: the first free one of runs/NAME-NUMBER."""
    notices: tuple[str, ...] = ()
    """What was told while they were read."""
    held: ProblemSet | None = None
    """Problems to measure by, which are never trained on."""


@dataclass(frozen=True, slots=True)
class ReadingInputs:
    """What `eval` and `sample` read, where nothing learns."""

    config: Config
    problems: ProblemSet
    source: str
    run: RunDirectory | None = None
    """None is the base model."""
    checkpoint: Path | None = None
    """A checkpoint of the run; None is its newest."""
    noise: bool = True
    """Whether the minds differ; without it the mean mind writes all rollouts."""
    rewards: bool = True
    """Whether rollouts are rewarded as in training. Nothing learns from it: it says which groups carry a signal."""


def notices(quiet: bool) -> Notice:
    """What tells notices on stderr, a line each; nothing where the user wants it quiet."""
    return unsaid if quiet else lambda text: print(f"ttrl-pop: {shown(text, limit=None)}", file=sys.stderr)


def for_run(
    source: Source | None, gold: Source | None, out: Path | None, given: Given, notice: Notice, writes: bool = True
) -> RunInputs:
    """Read configuration and problems of a new run.

    Args:
        source: as for `read_problems`.
        gold: source of gold answers.
        out: directory to be, which must not exist or be empty.
        notice: as for `read_problems`.
        writes: whether a run directory will be made.

    Raises:
        UsageError: whatever of it is wrong.
    """
    if source is None:
        raise UsageError("run needs PROBLEMS: a file, - for standard input, hf:NAME or gym:NAME (or --resume RUN)")
    config = given.config()
    others = {"--holdout": config.holdout} if isinstance(config.holdout, str) else {}
    check_one_stdin({"PROBLEMS": source, "--gold": gold, **others})
    check_free(out, writes)
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        notice(text)

    problems, held = with_holdout(read_problems(source, config.problems, gold, notice=tell), config, tell)
    if needs_gold(config.vote.reward):
        _check_all_gold(config.vote.reward, problems)
    return RunInputs(config, problems, source if isinstance(source, str) else "rows", out, tuple(told), held)


def for_reading(
    source: str, gold: str | None, run: Path | None, given: Given, notice: Notice, rewards: bool = True
) -> ReadingInputs:
    """Read configuration and problems for a base model or, where `run` is given, for what it trained.

    Args:
        notice: as for `read_problems`.
        rewards: reward the rollouts as the configuration says, unless that takes gold answers that are not there: a run
            that learned from them can be measured without.

    Raises:
        UsageError: whatever of it is wrong; also a setting that the run's weights do not go with.
    """
    check_one_stdin({"PROBLEMS": source, "--gold": gold})
    if run is None:
        config = given.config()
        problems = read_problems(source, config.problems, gold, notice=notice)
        return ReadingInputs(config, problems, source, rewards=rewards and _can_reward(config, problems))
    given.check_nothing_beside("--run")
    run_dir, checkpoint = find(run)
    text = identity.read(run_dir, identity.load(run_dir), identity.CONFIG)
    saved, config = load_config(run_dir.config, {}, text), given.config(run_dir.config, text)
    check_trusted(run_dir, config, given, unused=() if rewards else {"vote.reward"})
    noise = config.population.name != "none" or saved.population.name == "none"
    if not noise:
        # A trained adapter without noise is the mean mind; it needs the population's mu.
        trained = {"name": saved.population.name, "options": saved.population.options}
        population = config.population.model_copy(update=trained)
        config = config.model_copy(update={"population": population})
    for key, before, now in changes(saved, config):
        if key.startswith(FIXED):
            raise UsageError(f"--run {run}: {key} was {before!r} in training, cannot become {now!r}")
    # The run may have learned from the first problems of a file; how many of these are asked is another thing.
    reading = config.problems.model_copy(update={"limit": given.values().get("problems.limit")})
    problems = read_problems(source, reading, gold, notice=notice)
    rewards = rewards and _can_reward(config, problems)
    return ReadingInputs(config, problems, source, run_dir, checkpoint, noise, rewards)


def with_holdout(problems: ProblemSet, config: Config, notice: Notice) -> tuple[ProblemSet, ProblemSet | None]:
    """The problems to train on, and those that are held out where the configuration asks for some.

    Raises:
        UsageError: none would be left, the source cannot be read, or a problem is in both.
    """
    if config.holdout is None:
        return problems, None
    if isinstance(config.holdout, float):
        return holdout.split(problems, config.holdout, config.seed)
    if _PERCENT.fullmatch(config.holdout.strip()):
        share = float(config.holdout.strip(" %")) / 100
        raise UsageError(
            f"--holdout takes a share as a number, got '{shown(config.holdout)}'; pass --holdout {share:g}"
        )
    others = read_problems(config.holdout, config.problems.model_copy(update={"limit": None}), notice=notice)
    holdout.check_apart(problems.problems, others.problems)
    return problems, others


def stored_holdout(run: RunDirectory, known: Identity) -> ProblemSet | None:
    """The problems that a run holds out, with their gold answers; None where it holds none out.

    Raises:
        DamagedError: they are not those that the run wrote.
    """
    if run.holdout.name not in known.files:
        return None
    has_gold = run.holdout_gold.name in known.files
    for path in (run.holdout, *([run.holdout_gold] if has_gold else [])):
        identity.check(run, known, path.name)
    return read_problems(str(run.holdout), ProblemsConfig(), str(run.holdout_gold) if has_gold else None)


def stored_problems(run: RunDirectory, known: Identity) -> ProblemSet:
    """The problems of a run, with the gold answers that it was given.

    Raises:
        DamagedError: they are not those that the run wrote.
    """
    has_gold = GOLD in known.files
    for name in (PROBLEMS, *([GOLD] if has_gold else [])):
        identity.check(run, known, name)
    return read_problems(str(run.problems), ProblemsConfig(), str(run.gold) if has_gold else None)


def check_one_stdin(sources: Mapping[str, Source | None]) -> None:
    """Let standard input be one of `sources`, which has the names of the command line, at most.

    Raises:
        UsageError: it is several, of which the second would find it empty.
    """
    if sum(isinstance(source, str) and source == "-" for source in sources.values()) > 1:
        *names, last = sources
        raise UsageError(f"standard input can be one of {', '.join(names)} and {last}; name files for the others")


def changes(before: Config, after: Config) -> list[tuple[str, Any, Any]]:
    """(dotted key, value before, value after) of each setting that differs."""
    old, new = (flat(config.model_dump()) for config in (before, after))
    # Options that are None are left out of a file.
    keys = [*new, *(key for key in old if key not in new)]
    return [(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def check_writable(path: Path, flag: str) -> None:
    """Check by trying: permission bits say nothing of read-only mounts, of /proc, or of what root may do.

    Raises:
        UsageError: `path`, or the nearest folder above it that exists, takes no files.
    """
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            # A name that is too long is no name, and nothing above it tells.
            path.lstat()
        parent = _nearest(path)
        if not parent.is_dir():
            raise UsageError(f"{flag}: {parent} is not a directory")
        os.rmdir(tempfile.mkdtemp(prefix=".ttrl-pop-", dir=parent))
    except OSError as error:
        raise UsageError(f"{flag}: cannot be written to ({error.strerror}); name another directory") from error


def check_free(out: Path | None, writes: bool = True) -> None:
    """
    Args:
        writes: try whether files can be written there.

    Raises:
        UsageError: no directory can be made there, or what is there is not empty.
    """
    if out is None:
        if writes:
            check_writable(Path("runs"), "run directory runs")
        return
    if writes:
        check_writable(out, f"--out {out}")
    parent = _nearest(out)
    if not parent.is_dir():
        raise UsageError(f"--out {out}: {parent} is not a directory")
    if out.is_dir() and any(out.iterdir()):
        is_run = any((out / name).exists() for name in (RunDirectory(out).identity.name, STUDY))
        resumable = f"--resume {out} or " if is_run else ""
        raise UsageError(f"--out {out}: exists and is not empty; pass {resumable}another --out")


def _nearest(path: Path) -> Path:
    """`path`, or the nearest above it that exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if os.path.lexists(p))


def _can_reward(config: Config, problems: ProblemSet) -> bool:
    return not (needs_gold(config.vote.reward) and without_gold(problems))


def without_gold(problems: ProblemSet) -> list[str]:
    """Ids of the problems that have no gold answer."""
    return [problem.id for problem in problems.problems if problem.id not in problems.answers]


def _check_all_gold(reward: str, problems: ProblemSet) -> None:
    if missing := without_gold(problems):
        raise UsageError(
            f"reward {reward} needs a gold answer for every problem; {len(missing)} of {len(problems.problems)} have "
            f"none (first: {missing[0]!r}). Pass --gold, or leave them out"
        )


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
