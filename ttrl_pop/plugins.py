"""Populations, backends, graders and rewards by a short name or by `package.module:Name`; built-ins use the same door.

    load("reward", "majority")            the built-in
    load("reward", "my_package.rewards:length_penalised")   your own

A plug-in is code that the *user* names on the command line or in the configuration; it is imported and trusted.
"""

import difflib
import importlib
from typing import Any

from ttrl_pop.errors import UsageError

BUILT_IN: dict[str, dict[str, str]] = {
    "population": {
        "norm-noise": "ttrl_pop.population.norm_noise:NormNoise",
        "none": "ttrl_pop.population.base:NoPopulation",
    },
    "backend": {
        "hf": "ttrl_pop.sample.hf.backend:HfBackend",
        "vllm": "ttrl_pop.sample.vllm:VllmBackend",
    },
    "grader": {
        "math": "ttrl_pop.vote.graders.math:MathGrader",
        "exact": "ttrl_pop.vote.graders.exact:ExactGrader",
        "choice": "ttrl_pop.vote.graders.choice:ChoiceGrader",
    },
    "extractor": {
        "auto": "ttrl_pop.vote.extract:AUTO",
        "first-number": "ttrl_pop.vote.extract:FIRST_NUMBER",
        "last-number": "ttrl_pop.vote.extract:LAST_NUMBER",
        "choice": "ttrl_pop.vote.extract:CHOICE",
        "regex:PATTERN": "ttrl_pop.vote.extract:extract_regex",  # `build_extractor` takes it with its pattern
    },
    "reward": {
        "majority": "ttrl_pop.vote.rewards.consensus:majority",
        "frequency": "ttrl_pop.vote.rewards.consensus:frequency",
        "gated": "ttrl_pop.vote.rewards.consensus:gated",
        "novelty": "ttrl_pop.vote.rewards.novelty:Novelty",
        "novelty-embedding": "ttrl_pop.vote.rewards.novelty:NoveltyEmbedding",
        "gold": "ttrl_pop.vote.rewards.gold:GoldReward",
        "format": "ttrl_pop.vote.rewards.consensus:form",
        "overlong": "ttrl_pop.vote.rewards.consensus:overlong",
    },
}


def load(kind: str, name: str) -> Any:
    """Return the object that `name` stands for.

    Raises:
        UsageError: `name` is neither a built-in of this kind nor an importable `package.module:Name`.
    """
    built_in = BUILT_IN[kind]
    path = built_in.get(name, name)
    module_name, _, attribute = path.partition(":")
    if not (attribute and module_name) or module_name.startswith("."):
        near = difflib.get_close_matches(name, built_in, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"{kind} must be one of {', '.join(built_in)} or package.module:Name, got {name!r}{hint}")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(f"{kind} {name!r} cannot be imported ({error}); is its folder on PYTHONPATH?") from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise UsageError(f"{kind} {name!r}: module {module_name} has no {attribute!r}") from error
