"""An unknown key → the setting that was most likely meant."""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ttrl_pop.config import Config
from ttrl_pop.plugins import OPTIONS

ELSEWHERE = {
    "learning_rate": "learn.lr",
    "epsilon": "learn.clip_low",
    "epsilon_high": "learn.clip_high",
    "beta": "learn.kl",
    "kl_coef": "learn.kl",
    "lr_scheduler_type": "learn.schedule",
    "loss_type": "learn.loss",
    "gradient_checkpointing": "learn.checkpointing",
    "mask_truncated_completions": "learn.mask_truncated",
    "lora_r": "learn.lora.rank",
    "lora_alpha": "learn.lora.alpha",
    "target_modules": "learn.lora.targets",
    "max_tokens": "sampling.max_new_tokens",
    "max_length": "sampling.max_new_tokens",
    "max_completion_length": "sampling.max_new_tokens",
    "num_generations": "population.minds",
    "max_steps": "steps",
    "batch_size": "problems_per_step",
    "save_steps": "checkpoint.every",
    "eval_steps": "eval_every",
    "report_to": "track",
}
"""Names that settings have in other trainers, of which none is a setting here."""


def hint(key: str, model: type[BaseModel], tree: Mapping[str, Any]) -> str | None:
    """The known key that `key` most likely stands for: one of that name in another table or another trainer, else the
    most alike.

    Args:
        key: dotted.
        model: what knows the keys; a `Config` knows those of the options of built-in plug-ins, too.
        tree: what was to become of it.
    """
    known = _keys(model) + (_options(tree) if model is Config else [])
    by_name: dict[str, str] = {}
    for full in known:
        by_name.setdefault(full.rpartition(".")[2], full)
    name = key.rpartition(".")[2]
    if name in by_name:
        return by_name[name]
    if model is Config and name in ELSEWHERE:
        return ELSEWHERE[name]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return near[0] if near else next((by_name[n] for n in difflib.get_close_matches(name, by_name, n=1)), None)


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _keys(field.annotation, f"{prefix}{name}.")
    return keys


def _options(tree: Mapping[str, Any]) -> list[str]:
    """Keys of the options of the population and the backend that are named, where they are built in: nothing else is
    imported for a hint."""
    table = tree.get("population")
    default = Config()
    population = table.get("name", default.population.name) if isinstance(table, Mapping) else default.population.name
    named = (
        ("population", population, "population.options."),
        ("backend", tree.get("backend", "hf"), "backend_options."),
    )
    keys = []
    for kind, name, prefix in named:
        module, _, attribute = OPTIONS[kind].get(str(name), "").partition(":")
        if module:
            keys += _keys(getattr(importlib.import_module(module), attribute), prefix)
    return keys
