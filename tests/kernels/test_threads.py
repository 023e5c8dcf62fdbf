"""Waiting threads are told how long to spin, unless the environment says it."""

import os

import pytest

from ttrl_pop.kernels import threads


@pytest.fixture(autouse=True)
def unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in threads.OWN_SETTINGS:
        # Set first, so that what the call sets is taken back.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_threads_soon_sleep() -> None:
    threads.configure()
    assert os.environ[threads.SETTING] == threads.SPINS


@pytest.mark.parametrize("name", threads.OWN_SETTINGS)
def test_the_environment_goes_first(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "own")
    before = dict(os.environ)
    threads.configure()
    assert dict(os.environ) == before
