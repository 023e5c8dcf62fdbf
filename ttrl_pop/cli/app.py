"""The command line: what each command takes, and the exit code that an error becomes.

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
from ttrl_pop.cli.flags import Gold, OptionalProblems, Problems, Quiet, Trained, takes
from ttrl_pop.cli.given import Given
from ttrl_pop.errors import TtrlPopError, UsageError
from ttrl_pop.kernels import malloc
from ttrl_pop.text import shown


class Commands(TyperGroup):
    """All commands, with exit codes of our own."""

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
@takes(
    *("problems", "model", "population", "minds", "samples_per_mind", "steps", "problems_per_step", "lr", "reward"),
    *("extract", "backend", "gold", "out", "seed", "stop_on_collapse", "config", "set", "raw", "prompt_key"),
    *("answer_key", "id_key", "prompt_template", "resume", "quiet"),
)
def run(
    given: Given,
    problems: OptionalProblems = None,
    gold: Gold = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Run directory; must not exist yet, or be empty.  [default: runs/NAME-NUMBER]"
        ),
    ] = None,
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
    if resume is not None:
        if out is not None:
            raise UsageError("--resume goes on in its own run directory; leave --out out")
        from ttrl_pop.cli import opening

        prepared = opening.prepare_resume(resume, problems, gold, given)
    else:
        from ttrl_pop.cli import inputs

        checked = inputs.for_run(problems, gold, out, given)
        from ttrl_pop.cli import opening

        prepared = opening.create_run(checked)
    from ttrl_pop.cli import run as command

    command.run(prepared, quiet)


@app.command("eval", short_help="Measure a model or a run; gold answers optional.")
@takes(
    *("problems", "run", "compare", "model", "population", "minds", "samples_per_mind", "extract", "backend", "gold"),
    *("seed", "config", "set", "raw", "prompt_key", "answer_key", "id_key", "prompt_template", "quiet"),
)
def evaluate(
    given: Given,
    problems: Problems,
    run: Trained = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Measure the base model as well, and the difference.")
    ] = False,
    gold: Gold = None,
    quiet: Quiet = False,
) -> None:
    """ttrl-pop eval problems.jsonl --gold gold.jsonl --run runs/problems-1

    Measure a model or a run: agreement always; avg@n, pass@k and maj@k where gold answers exist; all with 95 %
    intervals over problems. One JSON line for each measured system (a table on a terminal). --compare adds the base
    model, with the same number of rollouts, and the paired difference. --population none switches the noise off.
    """
    if compare and run is None:
        raise UsageError("--compare puts a run beside the base model; pass --run RUN")
    from ttrl_pop.cli import inputs

    checked = inputs.for_reading(problems, gold, run, given)
    from ttrl_pop.cli import eval as command

    command.evaluate(checked, compare, quiet)


@app.command(short_help="Rollouts only, one JSON line each.")
@takes(
    *("problems", "run", "model", "population", "minds", "samples_per_mind", "extract", "backend", "seed", "config"),
    *("set", "raw", "prompt_key", "id_key", "prompt_template", "quiet"),
)
def sample(given: Given, problems: Problems, run: Trained = None, quiet: Quiet = False) -> None:
    """ttrl-pop sample problems.jsonl --minds 4 > rollouts.jsonl

    Rollouts only, one JSON line each, as they are written: id, form (raw or chat), rollout, mind (its seed), text,
    answer, finish_reason, policy_version, prompt_tokens, completion_ids, logprobs.
    """
    from ttrl_pop.cli import inputs

    checked = inputs.for_reading(problems, None, run, given, rewards=False)
    from ttrl_pop.cli import sample as command

    command.sample(checked, quiet)


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
@takes(
    *("rollouts", "gold", "before", "extract", "grader", "reward", "weight", "config", "set", "rollouts_raw"),
    *("answer_key", "id_key", "text_key", "shuffled", "quiet"),
)
def vote(
    given: Given,
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
    from ttrl_pop.cli import vote as command
    from ttrl_pop.read.rollouts import Layout

    command.label(rollouts, before, gold, Layout(id_key, text_key, shuffled=shuffled), given, quiet)


@app.command(short_help="The Free Transformer's letters experiment, trained here.")
def letters(
    kappa: Annotated[
        list[float] | None,
        typer.Option(
            metavar="BITS", help="Free bits of a token: 0.015625, 0.125, 1, 8. May be repeated.  [default: all]"
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Models to train for each.")] = 1,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="The first seed.")] = 0,
    steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Steps for each.  [default: what each needs]")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """ttrl-pop letters > letters.jsonl

    Train the Free Transformer on texts such as K>____KKKKKKKK__!__ and show what its latent code comes to carry: with
    few free bits nothing, then the place of the letters, then the noise as well, at last the text itself. One JSON line
    for each number of free bits and each seed (texts of one code beside texts of fresh codes on a terminal).
    """
    from ttrl_pop.cli import letters as command

    command.letters(kappa or (), seed, seeds, steps, quiet)


def main() -> None:
    """Entry point. 0 done, 1 failed, 2 bad usage or input, 3 stopped by the collapse guard, 130 interrupted."""
    stdout.install()
    interrupts.install()
    malloc.configure()
    app()


@contextmanager
def _exit_codes() -> Iterator[None]:
    """An error that a user can act on becomes one line on stderr; any other keeps its traceback."""
    try:
        yield
        sys.stdout.flush()
    except TtrlPopError as error:
        print(f"ttrl-pop: {shown(str(error), limit=None)}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError as error:
        # That of stdout never comes this far, but click takes any for it and would end without a word.
        raise RuntimeError("the pipe to another process broke (not that of standard output)") from error
