"""The command line: what each command takes, and the exit code that an error becomes.

stdout carries data only; the live view, notices and errors go to stderr. Heavy imports wait until a command runs, so
that `--help` answers at once.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ttrl_pop import __version__
from ttrl_pop.cli import advice, after, experiments, interrupts, launch, stdout, study
from ttrl_pop.cli.flags import Gold, Json, OptionalProblems, Out, Plan, Problems, Quiet, Ranks, Trained, takes
from ttrl_pop.cli.given import Given
from ttrl_pop.errors import TtrlPopError, UsageError
from ttrl_pop.kernels import malloc, threads
from ttrl_pop.ranks import launched
from ttrl_pop.text import shown


class Commands(TyperGroup):
    """All commands, with exit codes of our own."""

    def invoke(self, ctx: Any) -> Any:
        with _exit_codes():
            try:
                return super().invoke(ctx)
            except typer.BadParameter as error:
                _show_what_came(error)
                raise


def _show_what_came(error: typer.BadParameter) -> None:
    """Say of a value of another type what it was, in the words of the configuration."""
    from pydantic import ValidationError

    from ttrl_pop.config_file import in_words

    if isinstance(error.__cause__, ValidationError):
        error.message = in_words(error.__cause__.errors(include_url=False)[0]) or error.message


app = typer.Typer(
    cls=Commands,
    help="ttrl-pop run problems.jsonl > answers.jsonl\n\n"
    "A language model improves itself at test time, without labels: many minds of one model answer each problem, the "
    "majority answer is the label, and the model learns from it.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
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
    *("extract", "backend", "gold", "out", "seed", "holdout", "eval_every", "until_settled"),
    *("stop_on_collapse", "track", "preset", "config", "set", "raw"),
    *("prompt_key", "answer_key", "id_key", "limit", "prompt_template", "resume", "resume_or_new", "ranks", "plan"),
    *("json", "trust", "quiet"),
)
def run(
    given: Given,
    problems: OptionalProblems = None,
    gold: Gold = None,
    out: Out = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Go on with this run, where it stopped or was killed, to the same result as undisturbed.",
        ),
    ] = None,
    resume_or_new: Annotated[
        bool,
        typer.Option(
            "--resume-or-new",
            help="Go on with --out RUN where it has begun, with its own problems and settings, else begin it: the same "
            "command again after whatever stopped it.",
        ),
    ] = False,
    ranks: Ranks = None,
    plan: Plan = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """ttrl-pop run problems.jsonl --steps 20 > answers.jsonl

    Train without labels: many minds answer each problem, the majority is the label, GRPO learns. Prints the final
    answers as JSON lines (a table on a terminal). Everything else is kept in the run directory.
    """
    launch.start(ranks, plan, json)
    if resume_or_new:
        if out is None or resume is not None or plan:
            raise UsageError("--resume-or-new goes with --out RUN, without --resume and --plan")
        from ttrl_pop.cli import again

        if again.has_begun(out):
            resume, out, problems, gold, given = out, None, None, None, again.changeable(given)
    if resume is None:
        _run(problems, gold, out, given, plan, json, quiet)
        return
    if out is not None:
        raise UsageError("--resume goes on in its own run directory; leave --out out")
    if plan:
        raise UsageError("--plan looks at a new run; leave --resume out")
    from ttrl_pop.cli import opening
    from ttrl_pop.cli import run as command

    command.run(lambda stage: opening.prepare_resume(resume, problems, gold, given, stage), quiet)


def _run(
    problems: str | None, gold: str | None, out: Path | None, given: Given, plan: bool, as_json: bool, quiet: bool
) -> None:
    """A new run, or what it would do."""
    from ttrl_pop.cli import inputs

    checked = inputs.for_run(problems, gold, out, given, inputs.notices(quiet), writes=not plan)
    if plan:
        from ttrl_pop.cli import plan as planning

        planning.plan_run(checked, as_json, quiet)
        return
    from ttrl_pop.cli import opening
    from ttrl_pop.cli import run as command

    command.run(lambda stage: opening.create_run(checked, stage), quiet)


@app.command("eval", short_help="Measure a model or a run; gold answers optional.")
@takes(
    *("problems", "run", "compare", "model", "population", "minds", "samples_per_mind", "extract", "backend", "gold"),
    *("seed", "preset", "config", "set", "raw", "prompt_key", "answer_key", "id_key", "limit", "prompt_template"),
    *("ranks", "plan", "json", "trust", "quiet"),
)
def evaluate(
    given: Given,
    problems: Problems,
    run: Trained = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Measure the base model as well, and the difference.")
    ] = False,
    gold: Gold = None,
    ranks: Ranks = None,
    plan: Plan = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """ttrl-pop eval problems.jsonl --gold gold.jsonl --run runs/problems-1

    Measure a model or a run: agreement always; avg@n, pass@k and maj@k where gold answers exist; all with 95 %
    intervals over problems. One JSON line for each measured system (a table on a terminal). --compare adds the base
    model, with the same number of rollouts, and the paired difference. --population none switches the noise off.
    """
    if compare and run is None:
        raise UsageError("--compare puts a run beside the base model; pass --run RUN")
    launch.start(ranks, plan, json)
    from ttrl_pop.cli import inputs

    checked = inputs.for_reading(problems, gold, run, given, inputs.notices(quiet))
    if plan:
        from ttrl_pop.cli import plan as planning

        planning.plan_eval(checked, compare, json, quiet)
        return
    from ttrl_pop.cli import eval as command

    command.evaluate(checked, compare, quiet)


@app.command(short_help="Rollouts only, one JSON line each.")
@takes(
    *("problems", "run", "model", "population", "minds", "samples_per_mind", "extract", "backend", "seed", "preset"),
    *("config", "set", "raw", "prompt_key", "id_key", "limit", "prompt_template", "ranks", "plan", "json", "trust"),
    *("quiet",),
)
def sample(
    given: Given,
    problems: Problems,
    run: Trained = None,
    ranks: Ranks = None,
    plan: Plan = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """ttrl-pop sample problems.jsonl --minds 4 > rollouts.jsonl

    Rollouts only, one JSON line each, as they are written: id, form (raw or chat), rollout, mind (its seed), text,
    answer, finish_reason, policy_version, prompt_tokens, completion_ids, logprobs.
    """
    launch.start(ranks, plan, json)
    from ttrl_pop.cli import inputs

    checked = inputs.for_reading(problems, None, run, given, inputs.notices(quiet), rewards=False)
    if plan:
        from ttrl_pop.cli import plan as planning

        planning.plan_sample(checked, json, quiet)
        return
    from ttrl_pop.cli import sample as command

    command.sample(checked, quiet)


@app.command(short_help="Label rollouts made elsewhere.")
@takes(
    *("rollouts", "gold", "before", "extract", "grader", "reward", "weight", "preset", "config", "set", "rollouts_raw"),
    *("answer_key", "id_key", "text_key", "shuffled", "quiet"),
)
def vote(
    given: Given,
    rollouts: Annotated[
        str,
        typer.Argument(
            metavar="ROLLOUTS",
            help="JSONL, JSON, CSV or Parquet file, packed or not, or - for standard input. Each row holds the id of a "
            "problem and a completion, or a list of them. Samples that lm-eval logged and logs of inspect (.eval, "
            ".json) are such.",
        ),
    ],
    gold: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Gold answers (JSON lines with id and answer, or the log itself): adds gold and correct.",
        ),
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

    A row that cannot be read is told on stderr and left out, all others count, and the exit code is 2 at the end.

    Rollouts whose chat template opened the thoughts need --set vote.thinking=true; marks of thoughts that are not known
    are told by --set 'vote.thinking=["<plan>", "</plan>"]'.
    """
    from ttrl_pop.cli import vote as command
    from ttrl_pop.read.rollouts import Layout

    command.label(rollouts, before, gold, Layout(id_key, text_key, shuffled=shuffled), given, quiet)


@app.command(short_help="Codes of latent minds, fitted once for many runs.")
@takes(
    *("problems", "out", "model", "seed", "preset", "config", "set", "raw", "prompt_key", "id_key", "limit"),
    *("prompt_template", "quiet"),
)
def fit(
    given: Given,
    problems: Problems,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder to be made.")],
    quiet: Quiet = False,
) -> None:
    """ttrl-pop fit problems.jsonl --out fit

    Fit latent minds to a model: find which codes decide what it leaves open on these problems, from what it writes
    itself. A run takes the fit by --population latent --set population.options.fitted=FOLDER; without one it fits its
    own. Prints the figures of held-out problems as a JSON line.
    """
    from ttrl_pop.cli import fit as command
    from ttrl_pop.cli import inputs

    checked = inputs.for_reading(problems, None, None, given, inputs.notices(quiet), rewards=False)
    command.fit(checked, out, quiet)


@app.command(short_help="A small model teaches itself the times table.")
@takes("model", "minds", "steps", "out", "seed", "set", "ranks", "plan", "json", "quiet")
def demo(
    given: Given,
    out: Out = None,
    ranks: Ranks = None,
    plan: Plan = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """ttrl-pop demo --steps 1

    Train the built-in model on 24 questions of the times table without their answers: a run like any other, of which
    problems, gold answers and settings come with the program. Minutes on a CPU.
    """
    launch.start(ranks, plan, json)
    from ttrl_pop import demo as data

    # What a user has typed wins over the demo's own file.
    typed = replace(given, files=[data.path(data.CONFIG)])
    _run(str(data.path(data.PROBLEMS)), str(data.path(data.GOLD)), out, typed, plan, json, quiet)


@app.command(short_help="Every setting, as TOML.")
@takes("preset", "config", "set", "schema")
def config(
    given: Given,
    schema: Annotated[bool, typer.Option("--schema", help="A JSON schema of such files instead, for editors.")] = False,
) -> None:
    """ttrl-pop config --preset math-chat > config.toml

    Every setting with its value, what it takes and what it means, as TOML that --config reads: the defaults, or what
    --preset, --config and --set make of them.
    """
    from ttrl_pop.cli import config as command

    command.config(given, schema)


app.add_typer(study.commands)
app.add_typer(experiments.commands)
app.add_typer(after.commands)


def main() -> None:
    """Entry point. 0 done, 1 failed, 2 bad usage or input, 3 stopped by the collapse guard, 130 interrupted."""
    stdout.install()
    advice.install()
    interrupts.install()
    malloc.configure()
    threads.configure()
    with _exit_codes():
        try:
            if launched.size() > 1:
                launch.take_part(app)
            app()
        finally:
            # What the parser itself prints ends the process before anything else looks at the stream.
            sys.stdout.flush()


@contextmanager
def _exit_codes() -> Iterator[None]:
    """An error that a user can act on, the system's among them, becomes one line on stderr; any other keeps its
    traceback."""
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
    except OSError as error:
        from ttrl_pop.cli.os_errors import refusal

        if (line := refusal(error)) is None:
            raise
        print(f"ttrl-pop: {shown(line, limit=None)}", file=sys.stderr)
        raise SystemExit(1) from None
