"""ttrl-pop: a language model improves itself at test time, without labels.

What a plug-in is made of can be had from here, and stays here wherever its module goes:

    from ttrl_pop import Grader

A name is looked up in its module when it is first asked for, so that `import ttrl_pop` alone loads nothing, torch least
of all. This face stands outside of the floors: nothing in the house imports from it but `__version__`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttrl_pop import randomness
    from ttrl_pop.config import Section
    from ttrl_pop.errors import UsageError
    from ttrl_pop.population.base import MEAN, Population
    from ttrl_pop.population.norm_noise import gaussian_kl, hidden_size, norm_sites
    from ttrl_pop.sample.backend import Backend, Request, Weights
    from ttrl_pop.sample.hf.backend import HfBackend
    from ttrl_pop.types import FinishReason, Metrics, Mind, Rollout
    from ttrl_pop.vote.graders.base import Grader
    from ttrl_pop.vote.rewards.base import Ballot
    from ttrl_pop.vote.rewards.consensus import majority

__version__ = "0.1.0"

__all__ = [
    "MEAN",
    "Backend",
    "Ballot",
    "FinishReason",
    "Grader",
    "HfBackend",
    "Metrics",
    "Mind",
    "Population",
    "Request",
    "Rollout",
    "Section",
    "UsageError",
    "Weights",
    "gaussian_kl",
    "hidden_size",
    "majority",
    "norm_sites",
    "randomness",
]

_HOMES = {
    "MEAN": "ttrl_pop.population.base",
    "Backend": "ttrl_pop.sample.backend",
    "Ballot": "ttrl_pop.vote.rewards.base",
    "FinishReason": "ttrl_pop.types",
    "Grader": "ttrl_pop.vote.graders.base",
    "HfBackend": "ttrl_pop.sample.hf.backend",
    "Metrics": "ttrl_pop.types",
    "Mind": "ttrl_pop.types",
    "Population": "ttrl_pop.population.base",
    "Request": "ttrl_pop.sample.backend",
    "Rollout": "ttrl_pop.types",
    "Section": "ttrl_pop.config",
    "UsageError": "ttrl_pop.errors",
    "Weights": "ttrl_pop.sample.backend",
    "gaussian_kl": "ttrl_pop.population.norm_noise",
    "hidden_size": "ttrl_pop.population.norm_noise",
    "majority": "ttrl_pop.vote.rewards.consensus",
    "norm_sites": "ttrl_pop.population.norm_noise",
}
"""Name → the module that has it; `randomness` is a module itself."""


def __getattr__(name: str) -> Any:
    if name == "randomness":
        return import_module("ttrl_pop.randomness")
    if name not in _HOMES:
        raise AttributeError(f"module 'ttrl_pop' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
