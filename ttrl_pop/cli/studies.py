"""What the user gave of a study, read and checked without a model."""

from dataclasses import dataclass
from pathlib import Path

from ttrl_pop.cli.given import Given
from ttrl_pop.cli.inputs import check_free, check_one_stdin, notices, without_gold
from ttrl_pop.config_file import typed_layer
from ttrl_pop.errors import UsageError
from ttrl_pop.read.problems import read_problems
from ttrl_pop.study.design import Study, designed, own_problems, read_study
from ttrl_pop.types import ProblemSet
from ttrl_pop.vote.rewards.base import needs_gold


@dataclass(frozen=True, slots=True)
class StudyInputs:
    """What a new study is made from."""

    study: Study
    problems: ProblemSet
    out: Path | None
    """None: the first free one of runs/STUDY-NUMBER."""


def for_study(
    name: str,
    source: str | None,
    gold: str | None,
    seeds: int | None,
    out: Path | None,
    given: Given,
    quiet: bool,
    writes: bool = True,
) -> StudyInputs:
    """Read a new study, its settings and its problems.

    Args:
        name: one that comes with the program, or a TOML file.
        source: None takes the problems that come with the study.
        seeds: runs of each arm; None: as many as the study says.
        writes: whether a folder will be made.

    Raises:
        UsageError: whatever of it is wrong.
    """
    notice = notices(quiet)
    file = read_study(name)
    if (source := source or own_problems(name, file)) is None:
        raise UsageError(f"study {file.name} needs PROBLEMS: ttrl-pop study {name} problems.jsonl")
    check_one_stdin({"PROBLEMS": source, "--gold": gold})
    if seeds is not None:
        file = file.model_copy(update={"seeds": seeds})
    study = designed(file, given.layers(), typed_layer(given.values(), "command line"))
    if writes:
        check_free(out)
    problems = read_problems(source, study.arms[study.first].problems, gold, notice=notice)
    missing = without_gold(problems)
    blind = [arm for arm, config in study.arms.items() if needs_gold(config.vote.reward) and missing]
    if blind:
        study = study.without(blind)
        notice(
            f"left out: {', '.join(blind)}; {len(missing)} of {len(problems.problems)} problems have no gold answer "
            f"(first: {missing[0]!r})"
        )
    return StudyInputs(study, problems, out)
