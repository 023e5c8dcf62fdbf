"""What a person watches: a live view on a terminal, one plain line a step elsewhere."""

from ttrl_pop.cli.display.base import Display, Quiet
from ttrl_pop.cli.display.console import Deafened, Stream, console_on
from ttrl_pop.cli.display.lines import Lines
from ttrl_pop.cli.display.live import Live


def open_display(quiet: bool, stream: Stream | None) -> Display:
    """`Quiet` if asked for or without a stream, `Live` on a terminal that can draw it, else `Lines`."""
    if quiet or stream is None:
        return Quiet()
    console = console_on(stream)
    # isatty beside is_interactive: FORCE_COLOR makes rich take any file for a terminal.
    draws = Deafened(stream).isatty() and console.is_interactive and console.encoding.lower().startswith("utf")
    return Live(console) if draws else Lines(stream)
