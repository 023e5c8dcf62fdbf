"""The commands that come after a run: what it knows, its page, its server, and the way out of it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ttrl_pop.cli.flags import Quiet, Trust
from ttrl_pop.cli.given import Given

RUNS = "Run directory, or any path in one."
RUNS_OR_STUDIES = f"{RUNS} Or a study's folder: the first run of each arm."
Checkpoint = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run directory (its newest checkpoint), RUN/best, or any checkpoint.")
]
Form = Literal["auto", "plain", "adapter", "code"]

commands = typer.Typer(rich_markup_mode=None)


@commands.command(short_help="What a run knows of each problem.")
def problems(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory (its newest checkpoint) or a checkpoint.")],
    trust: Trust = False,
) -> None:
    """ttrl-pop problems runs/problems-1 | jq 'select(.flips > 0)'

    What a run knows of each problem that it has visited, one JSON line each (a table on a terminal): label, agreement
    and margin of the last visit, visits, flips (visits at which the label had changed), the step last seen, and the
    weight that its last update had.
    """
    from ttrl_pop.cli import problems as command

    command.problems(run, trust)


@commands.command(short_help="Runs side by side as an HTML page.")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help=RUNS_OR_STUDIES)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where the page goes.  [default: standard output]"),
    ] = None,
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """ttrl-pop report runs/problems-1 runs/problems-2 -o report.html

    One HTML page that holds all it needs and asks nothing of the network: figures before and after training with 95 %
    intervals, settings in which the runs differ, curves, and for each problem its label by visit, votes, and texts of
    two minds; of a study that compares texts, where they lie, too. A run that is under way is shown as far as it has
    come. Needs ttrl-pop[report].
    """
    from ttrl_pop.cli import report as command

    command.report(runs, output, trust, quiet)


@commands.command(short_help="The same page, live, in a browser.")
def view(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUNS", help=f"{RUNS} Or a folder of runs.  [default: runs]", show_default=False),
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=65535, help="Port on 127.0.0.1.  [default: a free one]", show_default=False
        ),
    ] = 0,
    trust: Trust = False,
) -> None:
    """ttrl-pop view

    The page of `ttrl-pop report` for runs that go on: serves it on 127.0.0.1 alone, prints its address, and shows new
    steps as they come, until Ctrl-C. Of a folder, the newest run is shown first. Needs ttrl-pop[report].
    """
    from ttrl_pop.cli import view as command

    command.view(runs or [Path("runs")], port, trust)


@commands.command(short_help="One mind of a run as a model folder.")
def export(
    run: Checkpoint,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder to be; must not exist yet, or be empty.")
    ],
    mind: Annotated[
        int | None,
        typer.Option(metavar="SEED", help="A mind by its seed, as in rollouts.  [default: the mean mind]", min=1),
    ] = None,
    to: Annotated[
        Form,
        typer.Option(
            metavar="FORM",
            help="plain (a class that transformers and vLLM know), adapter (peft), code (a class of its own), or auto: "
            "the first of these that holds the mind exactly.",
        ),
    ] = "auto",
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The base model, where it has moved.  [default: the run's]")
    ] = None,
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """ttrl-pop export runs/problems-1/best -o my-model

    Write the mean mind, or one mind, of a trained run as a folder that transformers opens. It is opened again and
    compared with the run, logits and greedy completions; if they differ by more than rounding it is removed, exit code
    1. One JSON line says form and figures; the folder's README.md is its model card.
    """
    from ttrl_pop.cli import export as command

    command.export(run, out, mind, to, Given(overrides={"model": model}, trust=trust), quiet)


@commands.command(short_help="Upload an exported folder to the hub.")
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What ttrl-pop export wrote.")],
    name: Annotated[str, typer.Argument(metavar="USER/NAME", help="The repository, which is made if need be.")],
    public: Annotated[bool, typer.Option("--public", help="For everyone to see.  [default: private]")] = False,
    quiet: Quiet = False,
) -> None:
    """ttrl-pop push my-model user/my-model

    Upload an exported folder to the Hugging Face hub, private unless --public. Repeated, it goes on where it was cut
    off. Prints the address as a JSON line.
    """
    from ttrl_pop.cli import export as command

    command.push(folder, name, public)


@commands.command(short_help="A run behind the OpenAI protocol.", context_settings={"ignore_unknown_options": True})
def serve(
    run: Checkpoint,
    more: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- FLAGS]", help="Flags of vLLM's server, as --max-model-len 4096.", show_default=False
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What the mean mind is called.  [default: the run directory's name]"),
    ] = None,
    host: Annotated[str, typer.Option(metavar="HOST", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=1, max=65535, help="Port to listen at.")] = 8000,
    minds: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Minds that vote.  [default: the run's]", show_default=False)
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the server's files go.  [default: RUN/serve]", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The base model, where it has moved.  [default: the run's]")
    ] = None,
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """ttrl-pop serve runs/problems-1/best -- --max-model-len 4096

    Serve a trained run by vLLM to any client of the OpenAI protocol, under the names NAME (the mean mind), NAME/mind-7
    (the mind of seed 7), NAME/base (the base model) and NAME/vote: all minds answer, and the reply is what the majority
    says, with the votes in its field vote. Needs ttrl-pop[vllm]. Ends with Ctrl-C.
    """
    from ttrl_pop.cli import serve as command

    given = Given(overrides={"model": model, "population.minds": minds}, trust=trust)
    command.serve(run, name, host, port, folder, more or [], given, quiet)
