"""`ttrl-pop study`: flags → arms side by side, to be run, to be gone on with, or to be planned."""

from pathlib import Path
from typing import Annotated

import typer

from ttrl_pop.cli import launch
from ttrl_pop.cli.flags import Gold, Json, OptionalProblems, Plan, Quiet, Ranks, takes
from ttrl_pop.cli.given import Given
from ttrl_pop.errors import UsageError

commands = typer.Typer(rich_markup_mode=None)


@commands.command(short_help="Arms over several seeds, with intervals.")
@takes(
    *("study", "problems", "seeds", "model", "minds", "samples_per_mind", "steps", "problems_per_step", "lr"),
    *("extract", "backend", "gold", "out", "seed", "preset", "config", "set", "raw", "prompt_key", "answer_key"),
    *("id_key", "limit", "prompt_template", "resume", "ranks", "plan", "json", "trust", "quiet"),
)
def study(
    given: Given,
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="STUDY",
            help="controls, minds, zero-shot, noise, diversity, or a TOML file of arms (docs/STUDIES.md).",
            show_default=False,
        ),
    ] = None,
    problems: OptionalProblems = None,
    gold: Gold = None,
    seeds: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Runs of each arm.  [default: the study's, 3]")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder of the runs; must not exist yet, or be empty.  [default: runs/STUDY-NUMBER]"
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Go on with this study, to the same rows as undisturbed."),
    ] = None,
    ranks: Ranks = None,
    plan: Plan = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """ttrl-pop study controls problems.jsonl --gold gold.jsonl

    Train every arm of a study with several seeds, each a run like any other, and put them side by side: means with 95 %
    intervals over problems and seeds, differences to the first arm, paired, with theirs, tokens, and what became of the
    labels. JSON lines (a table on a terminal): a row for each arm, then one for each difference.

    controls: agreement, pay by chance, pay for any answer, gold, and the untrained model with as many tokens. minds:
    minds against temperature. zero-shot: pass@k and maj@k without training. noise: kinds and sizes of it. diversity:
    how different texts are that minds or heat spread, at equal coherence; asks open questions of its own.
    """
    launch.start(ranks, plan, json)
    if resume is not None:
        _check_alone(resume, study, problems, gold, seeds, out, given, plan)
        from ttrl_pop.cli import cells as command

        command.go_on(resume, given, quiet)
        return
    if study is None:
        raise UsageError("study needs STUDY and PROBLEMS (or --resume FOLDER): ttrl-pop study controls problems.jsonl")
    from ttrl_pop.cli import studies

    checked = studies.for_study(study, problems, gold, seeds, out, given, quiet, writes=not plan)
    if plan:
        from ttrl_pop.cli import plan as planning

        planning.plan_study(checked.study, checked.problems, json, quiet)
        return
    from ttrl_pop.cli import cells as command

    command.run(checked, quiet)


def _check_alone(
    resume: Path,
    study: str | None,
    problems: str | None,
    gold: str | None,
    seeds: int | None,
    out: Path | None,
    given: Given,
    plan: bool,
) -> None:
    """Raises UsageError where a study that goes on would become another one."""
    given.check_nothing_beside("--resume")
    typed = [key for key, value in given.values().items() if value is not None]
    others = {"PROBLEMS": problems, "--gold": gold, "--seeds": seeds, "--out": out, "--plan": plan or None}
    typed += [name for name, value in others.items() if value is not None]
    if study is not None or typed:
        what = "STUDY" if study is not None else typed[0]
        raise UsageError(f"--resume {resume} goes on with the study as it was begun; leave {what} out")
