"""The command line: parse, build, stream, render, exit code.

stdout carries data only; the live view, notices and errors go to stderr. Heavy imports wait until a command runs, so
that `--help` answers at once.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ttrl_pop import __version__
from ttrl_pop.errors import TtrlPopError

app = typer.Typer(
    help="A language model improves itself at test time, without labels.\n\n"
    "ttrl-pop run problems.jsonl > answers.jsonl",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Problems = Annotated[str, typer.Argument(help="JSONL or JSON file, - for standard input, or hf:NAME[:config][:split].")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file; flags win over it.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Any other setting, as in learn.loss=grpo. May be repeated.")
]
Model = Annotated[
    str | None, typer.Option(help="Hub id, folder, .gguf file, or smollm2 (built in).  [default: smollm2]")
]
Backend = Annotated[str | None, typer.Option(help="Rollout engine.  [default: hf]")]
Population = Annotated[
    str | None,
    typer.Option(help="norm-noise (B-Trans), none, or package.module:Name.  [default: norm-noise]"),
]
Minds = Annotated[int | None, typer.Option(help="Minds that answer each problem.  [default: 16]")]
Samples = Annotated[
    int | None,
    typer.Option(help="Rollouts of each mind; a problem gets minds × this many votes.  [default: 1]"),
]
Gold = Annotated[
    str | None, typer.Option(help="File of gold answers, for measuring only: the learner never sees them.")
]
Seed = Annotated[int | None, typer.Option(help="Of every random draw.  [default: 0]")]
Raw = Annotated[
    bool | None,
    typer.Option("--raw/--chat", help="Use text prompts as they stand, or as chat turns.  [default: by field name]"),
]
PromptKey = Annotated[str | None, typer.Option(help="Field that holds the prompt.  [default: detected]")]
AnswerKeyName = Annotated[
    str | None, typer.Option("--answer-key", help="Field that holds the gold answer.  [default: detected]")
]
IdKey = Annotated[str | None, typer.Option(help="Field that holds the id.  [default: detected, or the line number]")]
Template = Annotated[
    str | None, typer.Option("--prompt-template", help="Text with {prompt} in it, put around every prompt.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Nothing on stderr but errors.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ttrl-pop {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    return


@app.command()
def run(
    problems: Annotated[
        str | None,
        typer.Argument(help="JSONL or JSON file, - for standard input, or hf:NAME[:config][:split]."),
    ] = None,
    model: Model = None,
    population: Population = None,
    minds: Minds = None,
    samples_per_mind: Samples = None,
    steps: Annotated[int | None, typer.Option(help="Steps to train.  [default: 20]")] = None,
    problems_per_step: Annotated[int | None, typer.Option(help="Problems in a step.  [default: 16]")] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate of the adapter; the population's is 5 ×.  [default: 5e-5]"),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(help="majority, frequency, gold, or package.module:Name.  [default: majority]"),
    ] = None,
    backend: Backend = None,
    gold: Gold = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory; must not exist yet.  [default: runs/NAME-NUMBER]")
    ] = None,
    seed: Seed = None,
    config: ConfigFile = None,
    settings: Set = None,
    raw: Raw = None,
    prompt_key: PromptKey = None,
    answer_key: AnswerKeyName = None,
    id_key: IdKey = None,
    prompt_template: Template = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this run directory, where it stopped or was killed.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """ttrl-pop run problems.jsonl --steps 20 > answers.jsonl

    Train without labels: many minds answer each problem, the majority is the label, GRPO learns. Prints the final
    answers as JSON lines (a table on a terminal). Everything else is kept in the run directory.
    """
    from ttrl_pop import commands

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
        **_reading(raw, prompt_key, answer_key, id_key, prompt_template),
    }
    if resume is not None:
        prepared = commands.prepare_resume(resume, problems, gold, config, overrides, settings or [])
    else:
        prepared = commands.prepare_run(problems, gold, out, config, overrides, settings or [])
    commands.run(prepared, quiet)


@app.command("eval")
def evaluate(
    problems: Problems,
    run: Annotated[
        Path | None, typer.Option(help="Run directory or one of its checkpoints; without it, the base model.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Measure the base model as well, and the difference.")
    ] = False,
    model: Model = None,
    population: Population = None,
    minds: Minds = None,
    samples_per_mind: Samples = None,
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
    """ttrl-pop eval problems.jsonl --gold gold.jsonl --run runs/problems-1 --compare

    Measure a model or a run: agreement always; avg@n, pass@k and maj@k with 95 % intervals where gold answers exist.
    One JSON line for each measured system (a table on a terminal). `--population none` switches the noise off.
    """
    from ttrl_pop import commands

    overrides = {
        "model": model,
        "backend": backend,
        "seed": seed,
        "population.name": population,
        "population.minds": minds,
        "population.samples_per_mind": samples_per_mind,
        **_reading(raw, prompt_key, answer_key, id_key, prompt_template),
    }
    commands.evaluate(problems, gold, run, compare, config, overrides, settings or [], quiet)


@app.command()
def sample(
    problems: Problems,
    run: Annotated[
        Path | None, typer.Option(help="Run directory or one of its checkpoints; without it, the base model.")
    ] = None,
    model: Model = None,
    population: Population = None,
    minds: Minds = None,
    samples_per_mind: Samples = None,
    backend: Backend = None,
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
    """ttrl-pop sample problems.jsonl --minds 4 > rollouts.jsonl

    Rollouts only, one JSON line each: id, mind (its seed), text, answer, token ids, log-probabilities, finish reason.
    """
    from ttrl_pop import commands

    overrides = {
        "model": model,
        "backend": backend,
        "seed": seed,
        "population.name": population,
        "population.minds": minds,
        "population.samples_per_mind": samples_per_mind,
        **_reading(raw, prompt_key, answer_key, id_key, prompt_template),
    }
    commands.sample(problems, run, config, overrides, settings or [], quiet)


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
    """Entry point. 0 done, 1 failed, 2 bad usage or input, 130 interrupted after saving."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
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


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
