"""A command that is through, or has failed, leaves no engine behind."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import tiny_session

from ttrl_pop.cli import eval as eval_command
from ttrl_pop.cli import opening
from ttrl_pop.cli import run as run_command
from ttrl_pop.cli import sample as sample_command
from ttrl_pop.cli.inputs import ReadingInputs
from ttrl_pop.cli.opening import PreparedRun
from ttrl_pop.errors import UsageError
from ttrl_pop.run.session import Session
from ttrl_pop.sample.hf.backend import HfBackend
from ttrl_pop.store import identity
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.types import ProblemSet, Rollout


class Closable(HfBackend):
    fails = False
    closed = 0

    def rollouts(self, *asked: Any) -> Iterator[tuple[int, Rollout]]:
        assert not self.closed
        if self.fails:
            raise UsageError("not with me")
        return super().rollouts(*asked)

    def close(self) -> None:
        self.closed += 1


def train(session: Session, folder: Path) -> None:
    folder.mkdir()
    run = RunDirectory(folder)
    run.identity.write_text(identity.of("model", "tokenizer", "problems", "p.jsonl", {}).dumps())
    run_command.run(lambda stage: PreparedRun(session, run, resumed=False), quiet=True)


def reading(command: Callable[[ReadingInputs], None]) -> Callable[[Session, Path, Any], None]:
    def read(session: Session, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(opening, "open_session", lambda *_, **__: session)
        problems = ProblemSet(session.problems, session.gold, "fingerprint")
        command(ReadingInputs(session.config, problems, "problems.jsonl"))

    return read


COMMANDS = {
    "run": lambda session, folder, _: train(session, folder),
    "eval": reading(lambda given: eval_command.evaluate(given, compare=False, quiet=True)),
    "sample": reading(lambda given: sample_command.sample(given, quiet=True)),
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", COMMANDS)
def test_the_engine_is_closed_at_the_end(
    name: str, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = tiny_session(backend=Closable, steps=1)
    assert isinstance(session.backend, Closable)
    session.backend.fails = fails
    try:
        COMMANDS[name](session, tmp_path / "run", monkeypatch)
        assert not fails
    except UsageError:
        assert fails
    assert session.backend.closed == 1
