"""The policy of a run as one of its checkpoints has it, with the model that the run was trained on."""

from pathlib import Path

from ttrl_pop.config import Config
from ttrl_pop.config_file import validate
from ttrl_pop.errors import UsageError
from ttrl_pop.model.load import LoadedModel, load_model
from ttrl_pop.model.policy import Policy
from ttrl_pop.model.prompts import tokenizer_fingerprint
from ttrl_pop.plugins import load
from ttrl_pop.store import checkpoint
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.store.identity import Identity


def trained_policy(run: RunDirectory, folder: Path, config: Config, known: Identity, device: str = "auto") -> Policy:
    """Load a run's model and put the checkpoint's adapter and population into it.

    Args:
        folder: of the checkpoint.
        config: of the run.
        known: of the run.

    Raises:
        UsageError: the model cannot be had, or is another one.
        CheckpointError: the checkpoint is not whole, or of another model.
    """
    kind = load("population", config.population.name)
    options = validate(kind.Options, config.population.options, source="population.options")
    model = load_model(config.model, device, config.dtype)
    check_model(model, known, config.model, str(run.path))
    policy = Policy(model, kind(options), config.learn.lora, config.seed)
    checkpoint.load_policy(folder, policy)
    return policy


def check_model(model: LoadedModel, known: Identity, name: str, where: str) -> None:
    """Refuse another model than the run's.

    Args:
        known: of the run.
        name: of `model`.
        where: the run, as the user named it.

    Raises:
        UsageError: its weights, or their type, are not those of the run, or prompts would not be.
    """
    if model.fingerprint != known.model:
        raise UsageError(f"{where}: model {name!r} is not the one of the run (other weights, or another dtype)")
    if tokenizer_fingerprint(model) != known.tokenizer:
        raise UsageError(
            f"{where}: model {name!r} has the weights of the run, but another tokenizer, chat template or end of "
            "sequence, so that prompts would be others; put its files back as they were, or start a new run"
        )
