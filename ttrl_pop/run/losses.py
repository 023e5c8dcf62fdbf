"""What a run that goes on has lost: files that nothing is computed from any more, and that cannot be made again."""

from collections.abc import Callable, Iterator

from ttrl_pop.config import CheckpointConfig
from ttrl_pop.errors import DamagedError
from ttrl_pop.run.progress import Progress
from ttrl_pop.store import checkpoint, identity, reading
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.store.identity import Identity

CALIBRATION = "calibration.json"

SEALED = (CALIBRATION, "baseline.jsonl")
"""Files that are written before the first step."""


def report_losses(
    run: RunDirectory, progress: Progress, config: CheckpointConfig, notice: Callable[[str], None]
) -> None:
    """Tell `notice` in a line of each file that is damaged or gone although the steps up to `progress` wrote it."""
    if not progress.step:
        return
    files = _files(run, identity.load(run))
    for text in (*files, *_rollouts(run, progress.step), *_checkpoints(run, progress, config)):
        notice(f"{text}; the run goes on without")


def _files(run: RunDirectory, known: Identity) -> Iterator[str]:
    for name in SEALED:
        if found := identity.flaw(run, known, name):
            yield f"{run.path / name}: {found}"


def _rollouts(run: RunDirectory, step: int) -> Iterator[str]:
    for done in range(1, step + 1):
        try:
            for _ in reading.read_content(run.rollouts(done)):
                pass
        except DamagedError as error:
            yield str(error)


def _checkpoints(run: RunDirectory, progress: Progress, config: CheckpointConfig) -> Iterator[str]:
    """Older checkpoints, of which as many as are kept, and the best, are there after an undisturbed run."""
    there = checkpoint.steps(run)
    for step in there:
        if step < progress.step and (found := checkpoint.flaw(run.checkpoint(step))):
            yield f"{run.checkpoint(step)} is not a whole checkpoint ({found})"
    if there[-1:] != [progress.step]:
        # Newer ones, which are damaged, had older ones removed.
        return
    before = (progress.step - 1) // config.every * config.every
    due = [progress.step, *range(before, 0, -config.every)][: config.keep]
    # An interrupted run saves between the steps at which one is due, and those push others out.
    others = [step for step in there if step not in due and step != progress.best_step]
    for step in [step for step in due if step not in there][len(others) :]:
        yield f"{run.checkpoint(step)} is gone"
    if progress.best_step is not None and progress.best_step not in there:
        yield f"{run.checkpoint(progress.best_step)}, the best checkpoint, is gone"
