"""An interrupt that a destructor or a library dropped is raised all the same."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from ttrl_pop.cli import interrupts


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
