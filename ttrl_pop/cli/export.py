"""`ttrl-pop export` and `ttrl-pop push`: one mind of a run as a model folder, and such a folder on the hub."""

import json
import sys
from pathlib import Path

from rich.text import Text

from ttrl_pop.cli.display.console import console_on
from ttrl_pop.cli.given import Given
from ttrl_pop.cli.inputs import check_writable
from ttrl_pop.cli.trust import NAMING, check_trusted
from ttrl_pop.config_file import load_config
from ttrl_pop.export import export as forms
from ttrl_pop.export import hub
from ttrl_pop.store import checkpoint, identity
from ttrl_pop.store.directory import find
from ttrl_pop.store.identity import CONFIG
from ttrl_pop.text import safe

LONGEST = 4096
"""Characters of a notice."""


def export(path: Path, out: Path, mind: int | None, form: forms.Form, given: Given, quiet: bool) -> None:
    """Write one mind of a run to `out` and print its row.

    Raises:
        UsageError: `path` is neither a run with a checkpoint nor a checkpoint, or cannot be exported so.
        ProofError: what was written is another model than the run.
    """

    def notice(text: str) -> None:
        if not quiet:
            console_on(sys.stderr).print(Text(safe(text, LONGEST)), soft_wrap=True)

    forms.check_free(out)
    check_writable(out.absolute().parent, f"--out {out}")
    run_dir, folder = find(path)
    known = identity.load(run_dir)
    text = identity.read(run_dir, known, CONFIG)
    config = given.config(run_dir.config, text)
    check_trusted(run_dir, load_config(run_dir.config, {}, text), given, NAMING - {"population.name"})
    if folder is None:
        folder = checkpoint.newest(run_dir, notice)
    done = forms.export(run_dir, folder, config, out, mind, form, notice)
    notice(f"{done.form}: {done.proof.said()}")
    print(json.dumps({"folder": str(out), **done.row()}))


def push(folder: Path, name: str, public: bool) -> None:
    """Upload an export and print where it is.

    Raises:
        UsageError: the folder is no export, opens on this machine alone, or the hub refuses it.
    """
    print(json.dumps({"url": hub.push(folder, name, public)}))
