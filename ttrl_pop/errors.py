"""Errors that a user can act on. Each message says the rule, what came, and what to do.

The command line prints one line and exits with `exit_code`; anything else that is raised is a bug of ours and
keeps its traceback.
"""


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
