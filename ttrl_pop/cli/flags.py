"""Flags: a table of those that set a configuration value, those that commands share otherwise, and who takes which.

A new flag for a setting is an entry in `SETTINGS`, and its name in `takes(...)` of each command that has it.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ttrl_pop.cli import advice, completion
from ttrl_pop.cli.given import Given


@dataclass(frozen=True, slots=True)
class Setting:
    """A flag that sets one value of the configuration."""

    key: str
    """Dotted, as in `learn.lr`."""
    kind: Any
    option: Any
    value: Callable[[Any], Any] = lambda typed: typed
    """What was typed → the value; None, not given, stays None."""


SETTINGS = {
    "model": Setting(
        "model",
        str,
        typer.Option(metavar="NAME", help="Hub id, folder, .gguf file, or smollm2 (built in).  [default: smollm2]"),
    ),
    "backend": Setting(
        "backend",
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.names("backend"),
            help="Rollout engine: hf, vllm, vllm-server (several engines), auto (vllm where it is installed and a GPU "
            "is there, else hf), a name that an installed package gives, or package.module:Name.  [default: hf]",
        ),
    ),
    "seed": Setting("seed", int, typer.Option(metavar="N", help="Of every random draw.  [default: 0]")),
    "steps": Setting(
        "steps",
        int,
        typer.Option(metavar="N", help="Steps to train; where a run goes on, more than before.  [default: 20]"),
    ),
    "problems_per_step": Setting(
        "problems_per_step", int, typer.Option(metavar="N", help="Problems in a step.  [default: 16]")
    ),
    "population": Setting(
        "population.name",
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.names("population"),
            help="norm-noise (B-Trans), latent (codes of bits, fitted first), none, a name that an installed package "
            "gives, or package.module:Name.  [default: norm-noise]",
        ),
    ),
    "minds": Setting(
        "population.minds", int, typer.Option(metavar="N", help="Minds that answer each problem.  [default: 16]")
    ),
    "samples_per_mind": Setting(
        "population.samples_per_mind",
        int,
        typer.Option(metavar="N", help="Rollouts of each mind; a problem gets minds × this many votes.  [default: 1]"),
    ),
    "lr": Setting(
        "learn.lr",
        float,
        typer.Option(metavar="RATE", help="Learning rate of the adapter; the population's is 5 ×.  [default: 5e-5]"),
    ),
    "extract": Setting(
        "vote.extract",
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.names("extract"),
            help="How an answer is read: auto, first-number, last-number, choice, regex:PATTERN, a name that an "
            "installed package gives, or package.module:function.  [default: auto]",
        ),
    ),
    "grader": Setting(
        "vote.grader",
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.names("grader"),
            help="Which answers are equal: math, exact, choice, a name that an installed package gives, or "
            "package.module:Name.  [default: math]",
        ),
    ),
    "reward": Setting(
        "vote.reward",
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.names("reward"),
            help="majority, frequency, gated, novelty, novelty-embedding, gold, format, overlong, a name that an "
            "installed package gives, package.module:Name, or a sum: majority+0.2*format. Controls: coin, shuffled.  "
            "[default: majority]",
        ),
    ),
    "weight": Setting(
        "vote.weight",
        str,
        typer.Option(
            metavar="NAME", help="Votes: one for each rollout, or mind, or by confidence.  [default: rollout]"
        ),
    ),
    "holdout": Setting(
        "holdout",
        str,
        typer.Option(
            metavar="FILE|SHARE",
            help="Keep a share of the problems out of training (0.2), or take others from a file, to measure by.",
        ),
        lambda typed: _share(typed),
    ),
    "eval_every": Setting(
        "eval_every",
        int,
        typer.Option(metavar="N", help="Measure on the problems held out every N steps.  [default: 5]"),
    ),
    "until_settled": Setting(
        "guard.until_settled",
        bool,
        typer.Option("--until-settled", help="End before the last step once labels no longer move."),
    ),
    "track": Setting(
        "track",
        list[str],
        typer.Option(
            metavar="NAME",
            help="Give the numbers of each step to a tracker: tensorboard (in RUN/tensorboard), wandb, trackio, or "
            "another that accelerate knows. May be repeated.",
        ),
        lambda typed: tuple(typed or ()) or None,
    ),
    "stop_on_collapse": Setting(
        "guard.stop_on_collapse",
        bool,
        typer.Option("--stop-on-collapse", help="End with exit code 3 when the run looks like a collapse."),
    ),
    "raw": Setting(
        "problems.form",
        bool,
        typer.Option(
            "--raw/--chat",
            help="Text prompts as they stand, for the model to continue (base and very small models, few-shot "
            "prompts), or as chat turns that ask for a boxed answer (instruction-tuned models).  [default: raw where "
            "the field is named prompt and the model has no chat template, or the text holds marks of it; else chat]",
        ),
        {True: "raw", False: "chat"}.get,
    ),
    "rollouts_raw": Setting(
        "problems.form",
        bool,
        typer.Option(
            "--raw/--chat",
            help="What the prompts were: text to continue, or chat turns. Decides how auto reads an answer.  "
            "[default: the rows' field form, else chat]",
        ),
        {True: "raw", False: "chat"}.get,
    ),
    "prompt_key": Setting(
        "problems.prompt_key",
        str,
        typer.Option(metavar="FIELD", help="Field that holds the prompt.  [default: detected]"),
    ),
    "answer_key": Setting(
        "problems.answer_key",
        str,
        typer.Option(metavar="FIELD", help="Field that holds the gold answer.  [default: detected]"),
    ),
    "id_key": Setting(
        "problems.id_key",
        str,
        typer.Option(metavar="FIELD", help="Field that holds the id.  [default: detected, or the line number]"),
    ),
    "limit": Setting("problems.limit", int, typer.Option(metavar="N", help="The first N problems alone.")),
    "prompt_template": Setting(
        "problems.prompt_template",
        str,
        typer.Option(metavar="TEXT", help="Text with {prompt} in it, put around every prompt."),
    ),
}
"""Flag, as a Python name → what it sets. A flag that is not given leaves the value as it is."""

SOURCE = (
    "JSONL, JSON, CSV or Parquet file, - for standard input, hf:NAME[@REVISION][:config][:split], or "
    "gym:NAME[:SIZE[:SEED]]."
)

Problems = Annotated[str, typer.Argument(metavar="PROBLEMS", help=SOURCE)]

OptionalProblems = Annotated[
    str | None, typer.Argument(metavar="PROBLEMS", help=f"{SOURCE} Not needed with --resume.", show_default=False)
]

Gold = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Gold answers (JSON lines with id and answer), for measuring. Nothing learns from them but "
        "--reward gold, and a reward class of yours that asks for them (needs_gold).",
    ),
]

Out = Annotated[
    Path | None,
    typer.Option(metavar="RUN", help="Run directory; must not exist yet, or be empty.  [default: runs/NAME-NUMBER]"),
]

Trained = Annotated[
    Path | None,
    typer.Option(
        "--run",
        metavar="RUN",
        help="Run directory (its newest checkpoint), RUN/best, or any checkpoint; without it, the base model.",
    ),
]

Quiet = Annotated[bool, typer.Option("--quiet", callback=advice.hush, help="Nothing on stderr but errors.")]

Plan = Annotated[
    bool,
    typer.Option(
        "--plan",
        help="Say what this would do, and do nothing: rollouts and tokens by part, memory, disk and, measured for two "
        "seconds, time.",
    ),
]

Json = Annotated[bool, typer.Option("--json", help="With --plan: JSON lines on a terminal, too.")]

Ranks = Annotated[
    int | None,
    typer.Option(
        "--ranks",
        metavar="N",
        help="Work in N processes on this machine, each with a GPU of its own where there are GPUs. Under torchrun or "
        "accelerate launch it is not needed.",
    ),
]

Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Import the code (package.module:Name) and use the servers and folders that RUN's own files name, now and "
        "later. Runs made here by you do not need it.",
    ),
]

Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        autocompletion=completion.presets,
        help="Settings to begin with: math-chat, math-raw, choice or tiny (ttrl-pop config --preset NAME shows them).",
    ),
]

ConfigFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="TOML file, such as RUN/config.toml; flags win over it. May be repeated: a later one wins.",
    ),
]

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        autocompletion=completion.settings,
        help="Any other setting, as in learn.loss=grpo. May be repeated.",
    ),
]


def takes(*flags: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command these flags, in the order of its help: its own parameters, settings of the table, `preset`,
    `config`, `set`, `trust`.

    What was typed for all but its own parameters comes to it as one: its first parameter, `given`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = dict(inspect.signature(command).parameters)
        del own["given"]
        # Keywords, of which one with a default may stand before one without.
        parameters = [
            (own.get(flag) or _parameter(flag)).replace(kind=inspect.Parameter.KEYWORD_ONLY) for flag in flags
        ]
        assert own.keys() <= set(flags), f"{command.__name__} does not say where these flags stand: {[*own]}"

        @functools.wraps(command)
        def typed(**values: Any) -> None:
            mine = {name: values.pop(name) for name in own}
            preset, files = values.pop("preset", None), values.pop("config", None) or ()
            settings = values.pop("set") or ()
            trust = values.pop("trust", False)
            overrides = {SETTINGS[name].key: SETTINGS[name].value(value) for name, value in values.items()}
            command(Given(preset, files, overrides, settings, trust), **mine)

        # What typer reads: the parameters, and their types.
        typed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        typed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return typed

    return decorate


def _share(typed: str | float | None) -> float | str | None:
    """A share where a number was given, else the name of a source."""
    try:
        return None if typed is None else float(typed)
    except ValueError:
        return typed


def _parameter(flag: str) -> inspect.Parameter:
    if flag == "trust":
        return inspect.Parameter(flag, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Trust)
    sources: dict[str, Any] = {"preset": Preset, "config": ConfigFiles, "set": Set}
    kind = sources.get(flag) or Annotated[SETTINGS[flag].kind | None, SETTINGS[flag].option]
    return inspect.Parameter(flag, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
