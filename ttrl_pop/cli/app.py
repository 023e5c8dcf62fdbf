"""The command line: parse, build, stream, render, exit code.

stdout carries data only; the live view, notices and errors go to stderr. Heavy imports wait until a command runs, so
that `--help` answers at once.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ttrl_pop import __version__
from ttrl_pop.cli import interrupts, stdout
from ttrl_pop.cli.flags import (
    AnswerKeyName,
    Backend,
    ConfigFile,
    Extract,
    Gold,
    IdKey,
    Minds,
    Model,
    OptionalProblems,
    Population,
    Problems,
    PromptKey,
    Quiet,
    Raw,
    Reward,
    Samples,
    Seed,
    Set,
    Template,
    Trained,
    reading_settings,
)
from ttrl_pop.errors import TtrlPopError, UsageError
from ttrl_pop.kernels import malloc
from ttrl_pop.text import one_line


class Commands(TyperGroup):
    """All commands, with exit codes of our own: typer would give 1 for a closed pipe."""

    def invoke(self, ctx: Any) -> Any:
        with _exit_codes():
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    help="ttrl-pop run problems.jsonl > answers.jsonl\n\n"
    "A language model improves itself at test time, without labels: many minds of one model answer each problem, the "
    "majority answer is the label, and the model learns from it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> bool:
    if wanted:
        print(f"ttrl-pop {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    return


@app.command(short_help="Train without labels; final answers out.")
def run(
    problems: OptionalProblems = None,
    model: Model = None,
    population: Population = None,
    minds: Minds = None,
    samples_per_mind: Samples = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Steps to train; with --resume, more than before.  [default: 20]")
    ] = None,
    problems_per_step: Annotated[
        int | None, typer.Option(metavar="N", help="Problems in a step.  [default: 16]")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Learning rate of the adapter; the population's is 5 ×.  [default: 5e-5]"),
    ] = None,
    reward: Reward = None,
    extract: Extract = None,
    backend: Backend = None,
    gold: Gold = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Run directory; must not exist yet, or be empty.  [default: runs/NAME-NUMBER]"
        ),
    ] = None,
    seed: Seed = None,
    stop_on_collapse: Annotated[
        bool | None,
        typer.Option("--stop-on-collapse", help="End with exit code 3 when the run looks like a collapse."),
    ] = None,
    config: ConfigFile = None,
    settings: Set = None,
    raw: Raw = None,
    prompt_key: PromptKey = None,
    answer_key: AnswerKeyName = None,
    id_key: IdKey = None,
    prompt_template: Template = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Go on with this run, where it stopped or was killed, to the same result as undisturbed.",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """ttrl-pop run problems.jsonl --steps 20 > answers.jsonl

    Train without labels: many minds answer each problem, the majority is the label, GRPO learns. Prints the final
    answers as JSON lines (a table on a terminal). Everything else is kept in the run directory.
    """
    overrides = {
        "model": model,
        "backend": backend,
        "seed": seed,
        "steps": steps,
        "problems_per_step": problems_per_step,
        "population.name": population,
        "population.minds": minds,
        "population.samples_per_mind": samples_per_mind,
        "learn.lr": lr,
        "vote.reward": reward,
        "guard.stop_on_collapse": stop_on_collapse,
        "vote.extract": extract,
        **reading_settings(raw, prompt_key, answer_key, id_key, prompt_template),
    }
    if resume is not None:
        if out is not None:
            raise UsageError("--resume goes on in its own run directory; leave --out out")
        from ttrl_pop.cli import opening

        prepared = opening.prepare_resume(resume, problems, gold, config, overrides, settings or [])
    else:
        from ttrl_pop.cli import inputs

        given = inputs.for_run(problems, gold, out, config, overrides, settings or [])
        from ttrl_pop.cli import opening

        prepared = opening.create_run(given)
    from ttrl_pop.cli import run as command

    command.run(prepared, quiet)


@app.command("eval", short_help="Measure a model or a run; gold answers optional.")
def evaluate(
    problems: Problems,
    run: Trained = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Measure the base model as well, and the difference.")
    ] = False,
    model: Model = None,
    population: Population = None,
    minds: Minds = None,
    samples_per_mind: Samples = None,
    extract: Extract = None,
    backend: Backend = None,
    gold: Gold = None,
    seed: Seed = None,
    config: ConfigFile = None,
    settings: Set = None,
    raw: Raw = None,
    prompt_key: PromptKey = None,
    answer_key: AnswerKeyName = None,
    id_key: IdKey = None,
    prompt_template: Template = None,
    quiet: Quiet = False,
) -> None:
    """ttrl-pop eval problems.jsonl --gold gold.jsonl --run runs/problems-1

    Measure a model or a run: agreement always; avg@n, pass@k and maj@k where gold answers exist; all with 95 %
    intervals over problems. One JSON line for each measured system (a table on a terminal). --compare adds the base
    model, with the same number of rollouts, and the paired difference. --population none switches the noise off.
    """
    overrides = {
        "model": model,
        "backend": backend,
        "seed": seed,
        "population.name": population,
        "population.minds": minds,
        "population.samples_per_mind": samples_per_mind,
        "vote.extract": extract,
        **reading_settings(raw, prompt_key, answer_key, id_key, prompt_template),
    }
    if compare and run is None:
        raise UsageError("--compare puts a run beside the base model; pass --run RUN")
    from ttrl_pop.cli import inputs

    given = inputs.for_reading(problems, gold, run, config, overrides, settings or [])
    from ttrl_pop.cli import eval as command

    command.evaluate(given, compare, quiet)


@app.command(short_help="Rollouts only, one JSON line each.")
def sample(
    problems: Problems,
    run: Trained = None,
    model: Model = None,
    population: Population = None,
    minds: Minds = None,
    samples_per_mind: Samples = None,
    extract: Extract = None,
    backend: Backend = None,
    seed: Seed = None,
    config: ConfigFile = None,
    settings: Set = None,
    raw: Raw = None,
    prompt_key: PromptKey = None,
    id_key: IdKey = None,
    prompt_template: Template = None,
    quiet: Quiet = False,
) -> None:
    """ttrl-pop sample problems.jsonl --minds 4 > rollouts.jsonl

    Rollouts only, one JSON line each, as they are written: id, form (raw or chat), rollout, mind (its seed), text,
    answer, finish_reason, policy_version, prompt_tokens, completion_ids, logprobs.
    """
    overrides = {
        "model": model,
        "backend": backend,
        "seed": seed,
        "population.name": population,
        "population.minds": minds,
        "population.samples_per_mind": samples_per_mind,
        "vote.extract": extract,
        **reading_settings(raw, prompt_key, None, id_key, prompt_template),
    }
    from ttrl_pop.cli import inputs

    given = inputs.for_reading(problems, None, run, config, overrides, settings or [])
    from ttrl_pop.cli import sample as command

    command.sample(given, quiet)


@app.command(short_help="What a run knows of each problem.")
def problems(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory (its newest checkpoint) or a checkpoint.")],
) -> None:
    """ttrl-pop problems runs/problems-1 | jq 'select(.flips > 0)'

    What a run knows of each problem that it has visited, one JSON line each (a table on a terminal): label, agreement
    and margin of the last visit, visits, flips (visits at which the label had changed), the step last seen, and the
    weight that its last update had.
    """
    from ttrl_pop.cli import problems as command

    command.problems(run)


@app.command(short_help="Label rollouts made elsewhere.")
def vote(
    rollouts: Annotated[
        str,
        typer.Argument(
            metavar="ROLLOUTS",
            help="JSONL or JSON file (.zst: compressed), or - for standard input. Each row holds the id of a problem "
            "and a completion, or a list of them.",
        ),
    ],
    gold: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Gold answers (JSON lines with id and answer): adds gold and correct."),
    ] = None,
    before: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Other rollouts, say of the base model: which labels were learned, kept and lost."
        ),
    ] = None,
    extract: Extract = None,
    grader: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Which answers are equal: math, exact, choice, or package.module:Name.  [default: math]",
        ),
    ] = None,
    reward: Reward = None,
    weight: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Votes: one for each rollout, or mind, or by confidence.  [default: rollout]"
        ),
    ] = None,
    config: ConfigFile = None,
    settings: Set = None,
    raw: Annotated[
        bool | None,
        typer.Option(
            "--raw/--chat",
            help="What the prompts were: text to continue, or chat turns. Decides how auto reads an answer.  "
            "[default: the rows' field form, else chat]",
        ),
    ] = None,
    answer_key: AnswerKeyName = None,
    id_key: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Field that holds the problem's id.  [default: detected]")
    ] = None,
    text_key: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Field that holds the completion or the list.  [default: detected]"),
    ] = None,
    shuffled: Annotated[
        bool,
        typer.Option("--shuffled", help="Rows of a problem do not stand together: hold all of them in memory."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """ttrl-pop vote rollouts.jsonl --gold gold.jsonl > votes.jsonl

    Label rollouts made elsewhere, by the votes of training: id, label, agreement, margin, entropy, tie, abstained,
    rollouts, clusters (answer, votes, share) and rewards in the order of the rows; one JSON line for each problem, as
    soon as its last row is read (a table on a terminal). Means on stderr at the end.

    Rollouts whose chat template opened the thoughts need --set vote.thinking=true.
    """
    overrides = {
        "vote.extract": extract,
        "vote.grader": grader,
        "vote.reward": reward,
        "vote.weight": weight,
        **reading_settings(raw, None, answer_key, None, None),
    }
    from ttrl_pop.cli import vote as vote_command
    from ttrl_pop.read.rollouts import Layout

    layout = Layout(id_key, text_key, shuffled=shuffled)
    vote_command.label(rollouts, before, gold, layout, config, overrides, settings or [], quiet)


def main() -> None:
    """Entry point. 0 done, 1 failed, 2 bad usage or input, 3 stopped by the collapse guard, 130 interrupted."""
    stdout.install()
    interrupts.install()
    malloc.configure()
    app()


@contextmanager
def _exit_codes() -> Iterator[None]:
    try:
        yield
        sys.stdout.flush()
    except TtrlPopError as error:
        print(f"ttrl-pop: {one_line(str(error))}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError as error:
        # That of stdout never comes this far, but click takes any for it and would end without a word.
        raise RuntimeError("the pipe to another process broke (not that of standard output)") from error
