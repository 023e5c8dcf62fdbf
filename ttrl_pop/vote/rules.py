"""The rules of the vote, from the configuration: one set for training, evaluation and rollouts from elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass

from ttrl_pop.config import VoteConfig, Weight
from ttrl_pop.plugins import load
from ttrl_pop.thoughts import Thinking
from ttrl_pop.types import AnswerKey
from ttrl_pop.vote.extract.extractor import AUTO, Extractor, build_extractor
from ttrl_pop.vote.graders.base import Grader
from ttrl_pop.vote.rewards.base import Reward, build_reward

Labels = Mapping[str, str | None]
"""Labels that others elected, by problem id; None where they all abstained."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How a group is voted on."""

    grader: Grader
    """Decides which answers are equal."""
    reward: Reward | None
    """Gives one finite number per rollout; None gives none."""
    extractor: Extractor = AUTO
    """Reads the answer of a completion."""
    weight: Weight = "rollout"
    thinking: Thinking = False
    """What is known of the thoughts of chat prompts."""
    token_limit: int | None = None
    """Longest completion, for rewards that look at lengths."""
    reward_name: str = ""
    """What the reward is called where it breaks its interface."""


def build_grader(config: VoteConfig) -> Grader:
    """The grader from the configuration.

    Raises:
        UsageError: there is none of that name, or it is no grader.
    """
    grader: Grader = load("grader", config.grader)()
    return grader


def build_rules(
    config: VoteConfig,
    answers: AnswerKey | None = None,
    thinking: Thinking = False,
    token_limit: int | None = None,
    rewards: bool = True,
) -> Rules:
    """Rules from the configuration.

    Args:
        rewards: reward the rollouts; without it the configured reward is not looked at.

    Raises:
        UsageError: a grader, reward or extraction that does not exist or cannot be had.
    """
    grader = build_grader(config)
    reward = build_reward(config.reward, answers or AnswerKey(), grader) if rewards else None
    extractor = build_extractor(config.extract)
    thinking = thinking if config.thinking is None else config.thinking
    return Rules(grader, reward, extractor, config.weight, thinking, token_limit, config.reward)
