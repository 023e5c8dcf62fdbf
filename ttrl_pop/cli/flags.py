"""Flags that several commands share, each with its help."""

from pathlib import Path
from typing import Annotated, Any

import typer

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


def reading_settings(
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
