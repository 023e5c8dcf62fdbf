"""ttrl-pop: a language model improves itself at test time, without labels.

    run = ttrl_pop.train("problems.jsonl", steps=5)    trains; iterated, it yields a report of each step
    ttrl_pop.open("runs/problems-1").ask("7 x 8?")     lets the minds of a run answer, and votes
    ttrl_pop.vote(rows)                                labels rollouts of any tool
    ttrl_pop.population(model, sigma=0.005)            minds in the rows of any model's batches

What a plug-in is made of can be had from here too, and stays here wherever its module goes:

    from ttrl_pop import Grader

A name is looked up in its module when it is first asked for, so that `import ttrl_pop` alone loads nothing, torch least
of all. This face stands outside of the floors: nothing in the house imports from it but `__version__`.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttrl_pop import randomness
    from ttrl_pop.api.population import Minds, population
    from ttrl_pop.api.run import Run, open
    from ttrl_pop.api.training import Training, train
    from ttrl_pop.api.vote import vote
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
    "Minds",
    "Population",
    "Request",
    "Rollout",
    "Run",
    "Section",
    "Training",
    "UsageError",
    "Weights",
    "gaussian_kl",
    "hidden_size",
    "majority",
    "norm_sites",
    "open",
    "population",
    "randomness",
    "train",
    "vote",
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
    "Minds": "ttrl_pop.api.population",
    "Population": "ttrl_pop.population.base",
    "Request": "ttrl_pop.sample.backend",
    "Rollout": "ttrl_pop.types",
    "Run": "ttrl_pop.api.run",
    "Section": "ttrl_pop.config",
    "Training": "ttrl_pop.api.training",
    "UsageError": "ttrl_pop.errors",
    "Weights": "ttrl_pop.sample.backend",
    "gaussian_kl": "ttrl_pop.population.norm_noise",
    "hidden_size": "ttrl_pop.population.norm_noise",
    "majority": "ttrl_pop.vote.rewards.consensus",
    "norm_sites": "ttrl_pop.population.norm_noise",
    "open": "ttrl_pop.api.run",
    "population": "ttrl_pop.api.population",
    "train": "ttrl_pop.api.training",
    "vote": "ttrl_pop.api.vote",
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


class _Face(ModuleType):
    """This module, in which `train`, `vote` and `population` are functions although modules of the tree have these
    names: Python would put each of those here once it is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
