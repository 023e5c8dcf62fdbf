"""A study's folder: where each of its runs is, which are done, and what those to come are made from.

STUDY/study.toml  problems.jsonl  gold.jsonl (if gold was given)
      majority-0/  majority-1/  coin-0/  …         ARM-SEED, each as `ttrl-pop run` leaves it
"""

import datetime
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ttrl_pop.config import MOST_ROLLOUTS, Config, ProblemsConfig
from ttrl_pop.errors import UsageError
from ttrl_pop.ranks import launched
from ttrl_pop.ranks.shards import enough_for
from ttrl_pop.read.problems import read_problems, write_gold, write_problems
from ttrl_pop.store import identity
from ttrl_pop.store.directory import RunDirectory, create
from ttrl_pop.store.identity import GOLD, PROBLEMS
from ttrl_pop.store.reading import LARGE, read_bytes, read_object
from ttrl_pop.study.design import Study, designed, parse_study
from ttrl_pop.study.figures import Figures
from ttrl_pop.types import ProblemSet

STUDY = "study.toml"


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a study."""

    arm: str
    seed: int
    """Number of the run among those of its arm, from 0."""
    config: Config
    run: RunDirectory

    @property
    def begun(self) -> bool:
        """Whether there is a run to go on with."""
        return self.run.identity.exists()

    @property
    def done(self) -> bool:
        """Whether the run has ended: its answers, which come last, are there as it wrote them, and a row of metrics for
        each step. It can put back rows."""
        if not self.begun:
            return False
        known, name = identity.load(self.run), self.run.answers.name
        if name not in known.files or identity.flaw(self.run, known, name) is not None:
            return False
        told, metrics = self.run.verdict, self.run.metrics
        if told.name not in known.files or identity.flaw(self.run, known, told.name) is not None:
            # A run without steps comes to nothing that could be told.
            return True
        rows = len(read_bytes(metrics, LARGE).splitlines()) if metrics.exists() else 0
        return bool(rows >= read_object(told)["steps"])


def begin(path: Path | None, study: Study, problems: ProblemSet, today: datetime.date) -> Path:
    """Make the folder of a new study. A day that chat templates print is the same in all its runs, and so are their
    shards, those to come when other processes go on with it among them.

    Args:
        path: None takes the first free one of runs/NAME-NUMBER.

    Raises:
        UsageError: it cannot be made.
    """
    settled = {name: _settled(config, today) for name, config in study.arms.items()}
    files = {
        PROBLEMS: "".join(f"{line}\n" for line in write_problems(problems.problems)),
        GOLD: "".join(f"{line}\n" for line in write_gold(problems.answers)),
        STUDY: replace(study, arms=settled, source=problems.source).dumps(),
    }
    return create(path, study.name, files).path


def opened(folder: Path) -> tuple[Study, ProblemSet]:
    """A study under way, from its folder.

    Raises:
        UsageError: it is none.
    """
    path = folder / STUDY
    if not path.exists():
        raise UsageError(f"{folder}: not the folder of a study (no {STUDY} in it)")
    study = designed(parse_study(read_bytes(path).decode(), folder.name))
    gold = folder / GOLD
    problems = read_problems(str(folder / PROBLEMS), ProblemsConfig(), str(gold) if gold.exists() else None)
    return study, replace(problems, source=study.source)


def cells(folder: Path, study: Study) -> Iterator[Cell]:
    """Yield all runs of a study, seed by seed, so that every arm has one before any has two."""
    for seed in range(study.seeds):
        for arm, config in study.arms.items():
            seeded = config.model_copy(update={"seed": config.seed + seed})
            yield Cell(arm, seed, seeded, RunDirectory(folder / f"{arm}-{seed}"))


def with_tokens_of(cell: Cell, other: Figures, problems: int) -> Cell:
    """The cell of an arm without steps, with as many rollouts of each problem as the other one's tokens make."""
    rollouts = other.tokens / other.untrained_length / problems
    return replace(cell, config=with_rollouts(cell.config, rollouts))


def with_rollouts(config: Config, count: float) -> Config:
    """The settings with about `count` rollouts of each problem, by samples of each mind."""
    population = config.population
    samples = min(max(1, round(count / population.minds)), MOST_ROLLOUTS // population.minds)
    return config.model_copy(update={"population": population.model_copy(update={"samples_per_mind": samples})})


def _settled(config: Config, today: datetime.date) -> Config:
    date = config.problems.date or today
    shards = config.shards or enough_for(launched.size())
    return config.model_copy(update={"problems": config.problems.model_copy(update={"date": date}), "shards": shards})
