"""The nouns that travel read → sample → vote → learn → report. No torch here.

All are frozen. A later stage wraps the earlier noun and adds nothing to it. `Problem` has no answer field: gold
answers live in an `AnswerKey`, which the learner never receives.
"""

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

Message: TypeAlias = dict[str, str]
"""One chat turn: `{"role": ..., "content": ...}`."""

FinishReason: TypeAlias = Literal["stop", "length"]
"""`stop`: end of sequence or a stop string; `length`: the token limit cut the completion off."""

Same: TypeAlias = Callable[[str | None, str | None], bool]
"""Whether two answers are equal; None equals nothing."""

NO_SIGNAL = 1e-6
"""Rewards of a group that differ by less than this are equal: the group has no advantages and teaches nothing."""

Work: TypeAlias = Literal["survey", "sample", "learn"]
"""Kinds of work, each with a pace of its own (`Load`)."""

Metrics: TypeAlias = dict[str, float | int | None]


@dataclass(frozen=True, slots=True)
class Problem:
    """A question to answer."""

    id: str
    prompt: str | tuple[Message, ...]
    """A string is used exactly as it stands; chat messages pass through the model's chat template."""
    index: int
    """Place in the input, from 0."""

    @property
    def is_chat(self) -> bool:
        return not isinstance(self.prompt, str)


class GoldAnswer(str):
    """A gold answer, and others that are as right."""

    others: tuple[str, ...]

    def __new__(cls, answer: str, others: Iterable[str] = ()) -> "GoldAnswer":
        """An answer with `others`, of which those that are the same text go."""
        made = super().__new__(cls, answer)
        made.others = tuple(other for other in dict.fromkeys(others) if other != answer)
        return made


class AnswerKey(Mapping[str, str]):
    """Gold answers by problem id, a `GoldAnswer` where several are right; may be empty. Only reports, measures and
    rewards that ask for it receive one."""

    __slots__ = ("_gold",)

    def __init__(self, gold: Mapping[str, str] | None = None) -> None:
        self._gold = dict(gold or {})

    def __getitem__(self, problem_id: str) -> str:
        return self._gold[problem_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._gold)

    def __len__(self) -> int:
        return len(self._gold)


@dataclass(frozen=True, slots=True)
class Mind:
    """One member of the population. Its noise is a pure function of `(seed, site)`."""

    seed: int

    def __post_init__(self) -> None:
        # A seed out of an array or a table is the integer that it stands for, and no other mind.
        object.__setattr__(self, "seed", int(operator.index(self.seed)))


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion of one problem by one mind."""

    mind: Mind
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    """Sampled tokens, with the one that ended the completion (end of sequence, or the last of a stop string)."""
    logprobs: tuple[float, ...]
    """Log-probability of each completion token under the distribution that it was drawn from."""
    text: str
    """The completion without special tokens, cut before the stop string."""
    finish_reason: FinishReason
    policy_version: int


@dataclass(frozen=True, slots=True)
class Group:
    """All rollouts of one problem in one step; the G of GRPO."""

    problem: Problem
    rollouts_G: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True)
class Cluster:
    """Answers of one group that count as equal."""

    answer: str
    """The spelling that most members gave; the lexicographically first among equals."""
    members: tuple[int, ...]
    """Indices into `Group.rollouts_G`, ascending."""
    share: Fraction
    """Share of all votes, abstentions included; a Fraction, so that ties are exact. With one vote for each rollout:
    members / G."""


@dataclass(frozen=True, slots=True)
class Tally:
    """The outcome of a vote."""

    group: Group
    answers_G: tuple[str | None, ...]
    """Extracted answers; None is an abstention."""
    clusters: tuple[Cluster, ...]
    """Largest share first; ties by canonical key, so that the order of rollouts cannot matter."""
    label: str | None
    """The pseudo-label: the answer of the first cluster, or what labellers elected. None when nobody answered."""
    label_cluster: int | None
    """Index of the cluster that equals the label: 0, unless labellers elected it; None when no cluster does."""
    rewards_G: tuple[float, ...]
    """Empty where nobody is rewarded."""
    timeouts: int = 0
    """Questions of this vote that the grader gave no verdict on in time."""

    @property
    def agreement(self) -> float:
        """Share of *all* votes for the first cluster (`majority_ratio` of TTRL, arXiv 2504.16084)."""
        return float(self.clusters[0].share) if self.clusters else 0.0

    @property
    def margin(self) -> float:
        """Share of the first cluster minus share of the second."""
        if not self.clusters:
            return 0.0
        return float(self.clusters[0].share - (self.clusters[1].share if len(self.clusters) > 1 else 0))

    @property
    def entropy(self) -> float:
        """Entropy of the answers given (rollouts, not votes), over log of their number: 0 equal, 1 all different."""
        voters = sum(len(cluster.members) for cluster in self.clusters)
        if voters < 2:
            return 0.0
        shares = [len(cluster.members) / voters for cluster in self.clusters]
        return sum(-p * math.log(p) for p in shares) / math.log(voters)

    @property
    def abstained(self) -> int:
        """Number of rollouts without an answer."""
        return sum(answer is None for answer in self.answers_G)

    @property
    def tie(self) -> bool:
        """Whether the first two clusters have equally many votes."""
        return len(self.clusters) > 1 and self.clusters[0].share == self.clusters[1].share


@dataclass(frozen=True, slots=True)
class Update:
    """What one call of `learn` did. Means are over the completion tokens that the loss counts."""

    policy_version: int
    """Version of the policy after the update."""
    loss: float | None
    """Mean over the updates of the step; None when no group carried a signal."""
    grad_norm: float | None
    """Norm of the adapter's gradient before clipping, mean over updates."""
    population_grad_norm: float | None
    kl: float | None
    """k3 estimate of KL(policy ‖ base) in nats per token; None when the KL weight is 0."""
    clip_share: float | None
    """Share of tokens whose ratio was clipped."""
    logprob_gap: float | None
    """Mean |Δ| between the sampler's and the learner's log-probabilities, nats per token."""
    logprob_gap_max: float | None
    tokens: int
    """Completion tokens that the loss counted."""
    groups_used: int
    groups_skipped: int
    """Groups whose rewards were all equal, or whose problem has weight 0: no signal, no learner time."""
    updates: int
    """Optimizer steps taken."""
    bad_updates: int
    """Optimizer steps skipped for a loss or gradient that was not finite."""
    token_budget: int
    """Tokens of a micro-batch: those of the configuration, or fewer since memory ran out."""
    lr: float
    population_lr: float


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of work of a training step begins."""

    step: int
    name: str
    """As a person reads it: `sampling`, `learning`."""
    work: Work
    rollouts: int
    """Rollouts that it writes, or those of groups that it learns from."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a command has to do."""

    survey: int = 0
    """Rollouts to write where every mind answers every problem, and nobody learns."""
    sample: int = 0
    """Rollouts to write in steps, those that elect labels among them."""
    steps: int = 0
    """Steps that learn, each from as many rollouts as their groups teach something."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """Everything that one row of metrics.jsonl says. A figure that needs gold is None without it, never 0."""

    step: int
    metrics: Metrics
    alarm: str | None = None
    """Why the run looks like a collapse, if it does."""


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """What a source holds."""

    problems: tuple[Problem, ...]
    answers: AnswerKey
    """Gold answers of those problems that have one."""
    fingerprint: str
    """SHA-256 (hex) over ids and prompts in order; gold answers do not enter it."""
    source: str = ""
    """Where they were read from, of a data set of the hub with the commit."""


def mean_logprob(rollout: Rollout) -> float | None:
    """Mean log-probability of the completion's tokens, nats; None without tokens."""
    return math.fsum(rollout.logprobs) / len(rollout.logprobs) if rollout.logprobs else None
