"""Names of models that a server of a population answers to.

| name | who writes |
|---|---|
| `NAME` | the mean mind |
| `NAME/mind-7` | the mind of seed 7 |
| `NAME/base` | the base model, without adapter and mind |
| `NAME/vote` | all minds of a survey; the majority's answer is the answer |
"""

import re
from dataclasses import dataclass
from typing import Any

from ttrl_pop.config import Config

MEAN_SEED = 0


@dataclass(frozen=True, slots=True)
class Served:
    """What a server runs."""

    name: str
    base: str
    """The base model's name inside of vLLM."""
    policy: str | None
    """Name of the policy, as adapter and as population (`ttrl_pop.sample.vllm.policy_files`); None without either."""
    adapted: bool
    noisy: bool
    config: Config
    """The run's, for the vote."""
    marked: bool = False
    """Whether marks of the model's thoughts are special tokens, which vLLM leaves out of texts unless it is asked."""

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Served":
        """From what `row` made of it."""
        return cls(**{**row, "config": Config.model_validate(row["config"])})

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        fields = {name: getattr(self, name) for name in ("name", "base", "policy", "adapted", "noisy", "marked")}
        return {**fields, "config": self.config.model_dump(mode="json")}


@dataclass(frozen=True, slots=True)
class Writer:
    """Who is to write, in vLLM's words."""

    model: str
    mind: dict[str, Any] | None
    """`vllm_xargs` of the mind; None is the model alone."""


def listed(served: Served) -> list[str]:
    """The names to show; minds of other seeds are known too."""
    minds = [f"{served.name}/mind-{seed}" for seed in range(1, 1 + served.config.population.minds)]
    return [served.name, f"{served.name}/vote", f"{served.name}/base", *(minds if served.noisy else [])]


def is_vote(served: Served, name: str | None) -> bool:
    """Whether a name stands for the vote."""
    return name == f"{served.name}/vote"


def writer(served: Served, name: str | None) -> Writer | None:
    """Who a name stands for; None where it stands for nobody. Without a name the mean mind writes."""
    if name is None or name == served.name:
        return mind(served, MEAN_SEED)
    if name == f"{served.name}/base":
        return Writer(served.base, None)
    found = re.fullmatch(re.escape(served.name) + r"/mind-(0|[1-9][0-9]{0,18})", name)
    if found is None or not served.noisy or int(found[1]) >= 2**63:
        return None
    return mind(served, int(found[1]))


def mind(served: Served, seed: int) -> Writer:
    """The mind of a seed."""
    model = served.policy if served.adapted and served.policy is not None else served.base
    return Writer(model, {"mind": seed, "population": served.policy} if served.noisy else None)
