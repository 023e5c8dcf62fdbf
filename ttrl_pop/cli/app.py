"""The command line: parse, build, stream, render, exit code.

stdout carries data only; the live view, notices and errors go to stderr. Heavy imports wait until a command runs, so
that `--help` answers at once.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ttrl_pop import __version__
from ttrl_pop.cli import interrupts
from ttrl_pop.errors import TtrlPopError, UsageError
from ttrl_pop.kernels import malloc


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

SOURCE = "JSONL or JSON file, - for standard input, or hf:NAME[:config][:split]."
Problems = Annotated[str, typer.Argument(metavar="PROBLEMS", help=SOURCE)]
OptionalProblems = Annotated[
    str | None, typer.Argument(metavar="PROBLEMS", help=f"{SOURCE} Not needed with --resume.", show_default=False)
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="TOML file, such as RUN/config.toml; flags win over it.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, as in learn.loss=grpo. May be repeated."),
]
Model = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Hub id, folder, .gguf file, or smollm2 (built in).  [default: smollm2]"),
]
Backend = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Rollout engine: hf, vllm, auto (vllm where it is installed and a GPU is there, else hf), or "
        "package.module:Name.  [default: hf]",
    ),
]
Population = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="norm-noise (B-Trans), none, or package.module:Name.  [default: norm-noise]"),
]
Minds = Annotated[int | None, typer.Option(metavar="N", help="Minds that answer each problem.  [default: 16]")]
Samples = Annotated[
    int | None,
    typer.Option(metavar="N", help="Rollouts of each mind; a problem gets minds × this many votes.  [default: 1]"),
]
Gold = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Gold answers (JSON lines with id and answer), for measuring: only --reward gold learns from them.",
    ),
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Of every random draw.  [default: 0]")]
Raw = Annotated[
    bool | None,
    typer.Option(
        "--raw/--chat",
        help="Text prompts as they stand, for the model to continue (base and very small models, few-shot prompts), or "
        "as chat turns that ask for a boxed answer (instruction-tuned models).  [default: raw where the field is named "
        "prompt, else chat]",
    ),
]
Extract = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="How an answer is read: auto, first-number, last-number, choice, regex:PATTERN, or "
        "package.module:function.  [default: auto]",
    ),
]
Reward = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="majority, frequency, gated, novelty, gold, package.module:Name, or a sum: majority+0.2*format.  "
        "[default: majority]",
    ),
]
PromptKey = Annotated[
    str | None, typer.Option(metavar="FIELD", help="Field that holds the prompt.  [default: detected]")
]
AnswerKeyName = Annotated[
    str | None,
    typer.Option("--answer-key", metavar="FIELD", help="Field that holds the gold answer.  [default: detected]"),
]
IdKey = Annotated[
    str | None, typer.Option(metavar="FIELD", help="Field that holds the id.  [default: detected, or the line number]")
]
Template = Annotated[
    str | None,
    typer.Option("--prompt-template", metavar="TEXT", help="Text with {prompt} in it, put around every prompt."),
]
Trained = Annotated[
    Path | None,
    typer.Option(
        "--run",
        metavar="RUN",
        help="Run directory (its newest checkpoint), RUN/best, or any checkpoint; without it, the base model.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Nothing on stderr but errors.")]


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
        **_reading(raw, prompt_key, answer_key, id_key, prompt_template),
    }
    if resume is not None:
        if out is not None:
            raise UsageError("--resume goes on in its own run directory; leave --out out")
        from ttrl_pop.cli import run as commands

        prepared = commands.prepare_resume(resume, problems, gold, config, overrides, settings or [])
    else:
        from ttrl_pop.cli import inputs

        given = inputs.for_run(problems, gold, out, config, overrides, settings or [])
        from ttrl_pop.cli import run as commands

        prepared = commands.create_run(given)
    commands.run(prepared, quiet)


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
        **_reading(raw, prompt_key, answer_key, id_key, prompt_template),
    }
    if compare and run is None:
        raise UsageError("--compare puts a run beside the base model; pass --run RUN")
    from ttrl_pop.cli import inputs

    given = inputs.for_reading(problems, gold, run, config, overrides, settings or [])
    from ttrl_pop.cli import run as commands

    commands.evaluate(given, compare, quiet)


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
        **_reading(raw, prompt_key, None, id_key, prompt_template),
    }
    from ttrl_pop.cli import inputs

    given = inputs.for_reading(problems, None, run, config, overrides, settings or [])
    from ttrl_pop.cli import run as commands

    commands.sample(given, quiet)


@app.command(short_help="What a run knows of each problem.")
def problems(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory (its newest checkpoint) or a checkpoint.")],
) -> None:
    """ttrl-pop problems runs/problems-1 | jq 'select(.flips > 0)'

    What a run knows of each problem that it has visited, one JSON line each (a table on a terminal): label, agreement
    and margin of the last visit, visits, flips (visits at which the label had changed), the step last seen, and the
    weight that its last update had.
    """
    from ttrl_pop.cli import run as commands

    commands.problems(run)


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
        **_reading(raw, None, answer_key, None, None),
    }
    from ttrl_pop.cli import vote as vote_command
    from ttrl_pop.read.rollouts import Layout

    layout = Layout(id_key, text_key, shuffled=shuffled)
    vote_command.label(rollouts, before, gold, layout, config, overrides, settings or [], quiet)


def _reading(
    raw: bool | None,
    prompt_key: str | None,
    answer_key: str | None,
    id_key: str | None,
    prompt_template: str | None,
) -> dict[str, Any]:
    return {
        "problems.form": None if raw is None else "raw" if raw else "chat",
        "problems.prompt_key": prompt_key,
        "problems.answer_key": answer_key,
        "problems.id_key": id_key,
        "problems.prompt_template": prompt_template,
    }


def main() -> None:
    """Entry point. 0 done, 1 failed, 2 bad usage or input, 3 stopped by the collapse guard, 130 interrupted."""
    # A stream that was closed (>&-) is None, and its number would go to the next file that is opened.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
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
    except BrokenPipeError:
        # The reader has left: nothing more to say. Python would complain when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def one_line(text: str) -> str:
    """An error as one printable line: it may quote what stood in a file."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
