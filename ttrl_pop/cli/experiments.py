"""The commands that repeat an experiment of a paper."""

from typing import Annotated

import typer

from ttrl_pop.cli.flags import Quiet

commands = typer.Typer(rich_markup_mode=None)


@commands.command(short_help="The Free Transformer's letters experiment, trained here.")
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
