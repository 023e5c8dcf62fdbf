"""Print docs/CLI.md, made from the help of every command. A test compares the two.

python dev/cli_reference.py > docs/CLI.md
"""

import typer.main
from typer.testing import CliRunner

from ttrl_pop.cli.app import app

COLUMNS = 100
INTRODUCTION = """# Command line

stdout carries data only, one JSON object a line (a table where it is a terminal); the live view, notices and errors go
to stderr. Exit codes: 0 done, also when the reader of stdout has left; 1 failed; 2 bad usage or bad input, nothing
written (`vote` goes on behind a row that cannot be read, and ends with 2 all the same); 3 stopped by the collapse
guard, a checkpoint is kept; 130 interrupted (Ctrl-C or SIGTERM) after saving.

A plug-in (`package.module:Name`) is imported where its name was typed, or stands in a file that `--config` names. One
that only the files of RUN name is imported where RUN was made on this machine by you, or with `--trust`, which is
remembered for that RUN (in `$XDG_STATE_HOME/ttrl-pop/trusted`, else `~/.local/state/ttrl-pop/trusted`). The same holds
for the addresses of servers, which are sent prompts and `VLLM_API_KEY`, and for folders that a backend writes to. All
else in a run directory is data: nothing of it is imported or unpickled.

This page is the output of `--help`, by `python dev/cli_reference.py > docs/CLI.md`.
"""


def page() -> str:
    """The reference as Markdown: the group first, then each command in its order."""
    names = list(typer.main.get_command(app).commands)
    parts = [INTRODUCTION]
    for words in ([], *([name] for name in names)):
        help_text = CliRunner().invoke(
            app, [*words, "--help"], prog_name="ttrl-pop", terminal_width=COLUMNS, color=False
        )
        text = "\n".join(line.rstrip() for line in help_text.stdout.strip().splitlines())
        parts.append(f"## {' '.join(['ttrl-pop', *words])}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
