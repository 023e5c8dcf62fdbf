"""The policy of a run as one of its checkpoints has it, with the model that the run was trained on."""

from pathlib import Path

from ttrl_pop.config import Config
from ttrl_pop.config_file import validate
from ttrl_pop.errors import UsageError
from ttrl_pop.model.load import load_model
from ttrl_pop.model.policy import Policy
from ttrl_pop.plugins import load
from ttrl_pop.store import checkpoint
from ttrl_pop.store.directory import RunDirectory


def trained_policy(run: RunDirectory, folder: Path, config: Config, fingerprint: str, device: str = "auto") -> Policy:
    """Load a run's model and put the checkpoint's adapter and population into it.

    Args:
        folder: of the checkpoint.
        config: of the run.
        fingerprint: of the model that the run knows.

    Raises:
        UsageError: the model cannot be had, or is another one.
        CheckpointError: the checkpoint is not whole, or of another model.
    """
    kind = load("population", config.population.name)
    options = validate(kind.Options, config.population.options, source="population.options")
    model = load_model(config.model, device, config.dtype)
    if model.fingerprint != fingerprint:
        raise UsageError(
            f"{run.path}: model {config.model!r} is not the one of the run (other weights, or another dtype)"
        )
    policy = Policy(model, kind(options), config.learn.lora, config.seed)
    checkpoint.load_policy(folder, policy)
    return policy
