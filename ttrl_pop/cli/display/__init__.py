"""Displays: what a person watches on stderr while a command runs. A live view on a terminal, plain lines elsewhere.

    with open_display(quiet=False, stream=sys.stderr) as display:
        display.begin("smollm2 on tables.jsonl", steps=8, done=0)
        display.phase("step 1: sampling", total=16)
        display.tally(tally, correct=True)
        display.step(report)

Another display is a subclass of `Display` in a file of its own, chosen in `open_display`. What a model or a file wrote
reaches the screen through `safe` and `rich.text.Text` only, so that it can neither colour the screen, move the cursor
nor be read as markup. A reader that goes away silences the display and leaves the run alone.
"""

from ttrl_pop.cli.display.base import Display
from ttrl_pop.cli.display.console import Deafened, TextStream, console_on
from ttrl_pop.cli.display.lines import Lines, Notices
from ttrl_pop.cli.display.live import Live


def open_display(quiet: bool, stream: TextStream | None, among_rows: bool = False) -> Display:
    """A silent one if asked for or without a stream, `Notices` where rows are read meanwhile, `Live` on a terminal
    that can draw it, else `Lines`."""
    if quiet or stream is None:
        return Display()
    if among_rows:
        return Notices(stream)
    console = console_on(stream)
    # isatty beside is_interactive: FORCE_COLOR makes rich take any file for a terminal.
    draws = Deafened(stream).isatty() and console.is_interactive and console.encoding.lower().startswith("utf")
    return Live(console) if draws else Lines(stream)
