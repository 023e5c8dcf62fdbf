"""Systems without POSIX's locks and forks: what needs none works there, and says what it does without."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.commands import rows_of, write_lines

from ttrl_pop.vote.graders.math import KEYS_ALONE, MathGrader

WITHOUT = (
    "import os, sys; sys.modules['fcntl'] = None; del os.fork\n"
    "from ttrl_pop.cli.app import main; sys.argv = ['ttrl-pop', *sys.argv[1:]]; main()"
)
ANSWERS = [r"\boxed{n+1}", r"\boxed{1+n}", r"\boxed{n+1}", r"\boxed{0.5}", r"\boxed{1/2}"]


@pytest.fixture
def elsewhere_run() -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.mark.slow
def test_vote_plan_and_eval_work_without_locks_and_forks(
    place: Path, tmp_path: Path, elsewhere_run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    rollouts = write_lines(tmp_path / "r.jsonl", [{"id": "p", "completions": ANSWERS}])
    voted = elsewhere_run("vote", rollouts)
    (row,) = rows_of(voted.stdout)
    assert [cluster["votes"] for cluster in row["clusters"]] == [2, 2, 1], "keys still join what is spelled otherwise"
    assert f"ttrl-pop: {KEYS_ALONE}" in voted.stderr
    common = ["--config", place / "c.toml", "--set", "vote.grader=math"]
    planned = elsewhere_run("run", place / "p.jsonl", *common, "--plan", "--json")
    assert json.loads(planned.stdout.splitlines()[0])["kind"] == "work"
    measured = elsewhere_run("eval", place / "p.jsonl", *common)
    assert rows_of(measured.stdout)[0]["problems"] == 6
    assert KEYS_ALONE in measured.stderr
    assert KEYS_ALONE not in elsewhere_run("vote", rollouts, "--quiet").stderr


def test_without_forks_no_process_is_asked_and_keys_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.fork")
    grader = MathGrader()
    assert grader.notices == (KEYS_ALONE,)
    assert grader.same("0.5", r"\frac{1}{2}")
    assert grader.same("12,34,567", "1234567"), "a second reading needs no algebra"
    assert not grader.same("n+1", "1+n")
    assert grader.questions == 0
    monkeypatch.undo()
    assert MathGrader().notices == ()
