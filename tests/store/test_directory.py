"""A run directory, found from any path in it."""

from pathlib import Path

import pytest

from ttrl_pop.errors import UsageError
from ttrl_pop.store.directory import RunDirectory, find


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run with two checkpoints, the first of which is the best, and what an interrupted save left."""
    run = RunDirectory(tmp_path / "run")
    for step in (1, 2):
        (run.checkpoint(step) / "adapter").mkdir(parents=True)
        (run.checkpoint(step) / "MANIFEST").write_text("{}")
    (run.checkpoints / ".saving-step_0003").mkdir()
    (run.path / "best").symlink_to(Path("checkpoints") / "step_0001")
    run.identity.write_text("{}")
    run.rollouts(1).parent.mkdir()
    run.rollouts(1).touch()
    return run


@pytest.mark.parametrize(
    ("inside", "step"),
    [
        ("", None),
        ("rollouts", None),
        ("rollouts/step_0001.jsonl.zst", None),
        ("identity.json", None),
        ("checkpoints", None),
        ("checkpoints/step_0002", 2),
        ("checkpoints/step_0002/adapter", 2),
        ("checkpoints/step_0001/MANIFEST", 1),
        ("best", 1),
        ("best/adapter", 1),
    ],
)
def test_a_run_is_found_from_any_path_in_it(
    run: RunDirectory, inside: str, step: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.path)
    for path in (run.path / inside, Path(inside)):
        found, checkpoint = find(path)
        assert found.path.resolve() == run.path.resolve()
        assert checkpoint == (None if step is None else run.checkpoint(step).resolve())


def test_a_copied_checkpoint_is_one_of_its_run(run: RunDirectory) -> None:
    copy = run.checkpoint(2).rename(run.checkpoints / "liked")
    assert find(copy)[1] == copy.resolve()


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("..", "neither a run directory nor a checkpoint in one"),
        ("checkpoints/step_0009", "no such folder; pass a run directory, or a checkpoint in one"),
        ("x" * 300, "no such folder; pass a run directory, or a checkpoint in one"),
        ("checkpoints/.saving-step_0003", "not a whole checkpoint"),
    ],
)
def test_what_is_no_run_and_no_checkpoint_is_refused(run: RunDirectory, inside: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find(run.path / inside)
