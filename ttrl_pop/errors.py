"""Errors that a user can act on. Each message says the rule, what came, and what to do.

The command line prints one line and exits with `exit_code`; anything else that is raised is a bug of ours and
keeps its traceback.
"""

from pathlib import Path


class TtrlPopError(Exception):
    """The run failed: exit code 1."""

    exit_code = 1


class UsageError(TtrlPopError, ValueError):
    """Bad usage or bad input, found before anything was written: exit code 2."""

    exit_code = 2


class StaleRolloutError(TtrlPopError, RuntimeError):
    """Rollouts were written by another policy version than the one that learns from them."""


class DivergenceError(TtrlPopError, ArithmeticError):
    """Several updates in a row had a loss or a gradient that was not finite."""


class EngineError(TtrlPopError, RuntimeError):
    """A rollout engine died, failed its self-test, or holds other weights than the policy."""


class SamplerMismatchError(TtrlPopError, ArithmeticError):
    """Sampler and learner disagree about the probabilities of the same tokens."""


class CollapseError(TtrlPopError, RuntimeError):
    """The collapse guard stopped the run, after saving a checkpoint: exit code 3."""

    exit_code = 3


class CheckpointError(TtrlPopError, RuntimeError):
    """A checkpoint cannot be read: a file is missing or does not match its MANIFEST."""


class DamagedError(UsageError):
    """A file of a run is not what the run wrote: it is gone, cut, changed, or no file at all."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
        """What is wrong, as the words that follow the file's name."""
