"""`ttrl-pop serve`: a run behind the OpenAI protocol, by vLLM's own server."""

import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from ttrl_pop.cli.display.console import console_on
from ttrl_pop.cli.given import Given
from ttrl_pop.cli.inputs import check_writable
from ttrl_pop.cli.trust import check_trusted
from ttrl_pop.config_file import load_config
from ttrl_pop.errors import UsageError
from ttrl_pop.sample.vllm.policy_files import folder_of
from ttrl_pop.store import checkpoint, identity
from ttrl_pop.store.directory import find
from ttrl_pop.store.identity import CONFIG
from ttrl_pop.text import safe

FOLDER = "serve"
"""Folder of a run with what its server reads."""


def serve(
    path: Path,
    name: str | None,
    host: str,
    port: int,
    folder: Path | None,
    more: Sequence[str],
    given: Given,
    quiet: bool,
) -> None:
    """Become the server of a run; does not return.

    Raises:
        UsageError: `path` is no run with a checkpoint, its minds cannot be served, or vLLM is not installed.
    """

    def notice(text: str) -> None:
        if not quiet:
            console_on(sys.stderr).print(Text(safe(text, 4096)), soft_wrap=True)

    if importlib.util.find_spec("vllm") is None:
        raise UsageError("serve needs vLLM; run: pip install 'ttrl-pop[vllm]'")
    run_dir, chosen = find(path)
    known = identity.load(run_dir)
    text = identity.read(run_dir, known, CONFIG)
    config = given.config(run_dir.config, text)
    unused = {"backend", "backend_options", "vote.reward"}
    check_trusted(run_dir, load_config(run_dir.config, {}, text), given, unused)
    place = folder or run_dir.path / FOLDER
    check_writable(place.absolute().parent, f"--folder {place}")
    from ttrl_pop.serve.app import SETTINGS
    from ttrl_pop.serve.prepare import prepare, shown

    prepared = prepare(
        run_dir,
        checkpoint.newest(run_dir, notice) if chosen is None else chosen,
        config,
        name or run_dir.path.resolve().name,
        folder_of(place),
        ["--host", host, "--port", str(port), *more],
    )
    served = prepared.served
    names = [served.name, f"{served.name}/vote", f"{served.name}/base", *([f"{served.name}/mind-SEED"] * served.noisy)]
    notice(f"serving {', '.join(names)} at http://{host}:{port}/v1")
    notice(shown(prepared.command))
    os.environ[SETTINGS] = json.dumps(served.row())
    # vLLM reports to its makers unless told otherwise; that is for the user to ask for.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    sys.stderr.flush()
    os.execv(prepared.command[0], prepared.command)
