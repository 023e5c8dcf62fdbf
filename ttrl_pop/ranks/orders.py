"""Orders: what the first process tells the others to do, together with it."""

from dataclasses import dataclass
from typing import Literal

from ttrl_pop.config import Config
from ttrl_pop.types import Mind, ProblemSet


@dataclass(frozen=True, slots=True)
class Open:
    """Load the model and make ready what a session works with."""

    config: Config
    """Resolved."""
    problems: ProblemSet
    held: ProblemSet | None
    """Held out."""
    adapter: bool
    rewards: bool


@dataclass(frozen=True, slots=True)
class Write:
    """Write the rollouts of your shards."""

    is_held_out: bool
    """Whether the problems are those held out: both kinds may have the same ids."""
    problems: tuple[str, ...]
    """Ids."""
    minds: tuple[Mind | None, ...]
    samples_per_mind: int
    step: int
    purpose: str
    weights: Literal["policy", "base"]
    limits: dict[str, int]
    """What the engine of the first process has lowered, so that all go on alike."""


@dataclass(frozen=True, slots=True)
class Vote:
    """Vote on your share of these problems, of whose rollouts you know."""

    is_held_out: bool
    problems: tuple[str, ...]
    """Ids."""
    labels: dict[str, str | None] | None
    """As others elected them."""


@dataclass(frozen=True, slots=True)
class Counted:
    """A rollout that the loss counts, as each process finds it among those that it knows of."""

    problem: str
    """Id."""
    member: int
    """Place in the group."""
    advantage: float
    weight: float


@dataclass(frozen=True, slots=True)
class Learn:
    """Keep what a step learns from."""

    shards: tuple[tuple[Counted, ...], ...]
    """What each shard learns from, in order."""


@dataclass(frozen=True, slots=True)
class Differentiate:
    """Compute the gradient of your shards of what is learned from."""

    first: bool
    """Whether no pass over it has been made: old log-probabilities are those of this one."""
    token_budget: int
    """Tokens of a micro-batch."""


Order = Open | Write | Vote | Learn | Differentiate


@dataclass(frozen=True, slots=True)
class Told:
    """An order, and the weights that it is done with."""

    order: Order
    digest: bytes
    """What the trained weights are known by."""
    version: int
    """The policy's."""
    follow: bool
    """Whether the weights come behind it, as they are others than before."""
