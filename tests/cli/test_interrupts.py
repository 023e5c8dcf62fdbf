"""An interrupt that a destructor or a library dropped is raised all the same."""

import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ttrl_pop.cli import interrupts

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupts.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_dropped_interrupt_is_raised_once_more_and_once_only(number: signal.Signals) -> None:
    interrupts.check()
    with suppress(KeyboardInterrupt):
        os.kill(os.getpid(), number)
        pytest.fail("the handler raises at once")
    with pytest.raises(KeyboardInterrupt):
        interrupts.check()
    interrupts.check()


def test_a_signal_after_the_first_is_ignored_where_a_launcher_sends_its_own() -> None:
    interrupts.install(once=True)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        interrupts.check()
    interrupts.check()


EARLY = """
import os, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "ttrl_pop.cli":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
module, _, name = sys.argv.pop(1).partition(":")
getattr(__import__(module, fromlist=[name]), name)()
"""


def test_an_interrupt_while_the_program_is_imported_leaves_no_traceback() -> None:
    point = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["ttrl-pop"]
    command = [sys.executable, "-c", EARLY, point, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
