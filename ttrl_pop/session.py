"""Configuration and problems → everything that a command works with, checked before anything is written."""

from collections.abc import Callable
from dataclasses import dataclass

from ttrl_pop.backends.base import Backend
from ttrl_pop.config import Config, validate
from ttrl_pop.errors import UsageError
from ttrl_pop.graders.base import Grader
from ttrl_pop.models import load_model
from ttrl_pop.plugins import load
from ttrl_pop.policy import Policy
from ttrl_pop.problems import ProblemSet
from ttrl_pop.rewards import Reward, build_reward
from ttrl_pop.sample import Prompts
from ttrl_pop.types import AnswerKey, Group, Tally
from ttrl_pop.vote import vote


@dataclass(frozen=True, slots=True)
class Session:
    """What a command works with."""

    config: Config
    problems: ProblemSet
    policy: Policy
    backend: Backend
    prompts: Prompts
    grader: Grader
    tally: Callable[[Group], Tally]
    """The vote with the configured extraction, grader and reward."""

    @property
    def answers(self) -> AnswerKey:
        return self.problems.answers


def open_session(config: Config, problems: ProblemSet, adapter: bool) -> Session:
    """Load the model, attach population and (where `adapter`) LoRA, and choose backend, grader and reward.

    Raises:
        UsageError: whatever of it cannot be had as asked for.
    """
    grader: Grader = load("grader", config.vote.grader)()
    reward: Reward = build_reward(config.vote.reward, problems.answers, grader)
    kind = load("population", config.population.name)
    options = validate(kind.Options, config.population.options, source="population.options")
    backend_kind = load("backend", config.backend)
    policy = Policy(
        load_model(config.model, config.device, config.dtype),
        kind(options),
        config.learn.lora if adapter else None,
        config.seed,
    )
    return Session(
        config=config,
        problems=problems,
        policy=policy,
        backend=backend_kind(policy, config.sampling),
        prompts=Prompts(policy, problems.problems, config.sampling.max_new_tokens),
        grader=grader,
        tally=lambda group: vote(group, config.vote.extract, grader, reward),
    )


def check_trainable(config: Config) -> None:
    """What holds for training only.

    Raises:
        UsageError: a group of one, or a sampling setting that would bias the importance ratio.
    """
    if config.group_size < 2:
        raise UsageError(
            "a group needs at least 2 rollouts to vote and to have an advantage; got minds × samples_per_mind = "
            f"{config.population.minds} × {config.population.samples_per_mind} = 1. Pass --minds 16"
        )
    if config.sampling.top_p < 1:
        raise UsageError(
            f"sampling.top_p must be 1 in training (it biases the importance ratio), got {config.sampling.top_p}"
        )
    if config.sampling.temperature == 0:
        raise UsageError("sampling.temperature must be above 0 in training, got 0; rollouts would not differ")
