"""TRL: the majority's answer as the label, as a reward function of GRPO.

    trl grpo --model_name_or_path Qwen/Qwen2.5-1.5B-Instruct --dataset_name my/problems --num_generations 16 \
      --reward_funcs ttrl_pop.integrations.trl.majority --use_peft

The votes of a prompt may be spread over processes: their texts are gathered, each process votes on all of them, and
returns the rewards of its own rows.

Simplifications:

1. A group is what stands together and has one prompt: two copies of a problem side by side are one vote.
2. How a completion ended is not told: a text that the token limit cut off is read as far as it goes.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import groupby
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from ttrl_pop.config import Config
from ttrl_pop.config_file import load_config
from ttrl_pop.read.chat import spoken
from ttrl_pop.types import AnswerKey, Group, Mind, Problem, Rollout, Tally
from ttrl_pop.vote.rules import Rules, build_rules
from ttrl_pop.vote.vote import vote

FIGURES: dict[str, Callable[[Tally], float]] = {
    "vote/agreement": lambda tally: tally.agreement,
    "vote/margin": lambda tally: tally.margin,
    "vote/abstained": lambda tally: tally.abstained / len(tally.answers_G),
}
"""What is logged of every batch: means over its groups."""


def majority(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    log_metric: Callable[[str, float], None] | None = None,
    **columns: Any,
) -> list[float]:
    """Rewards of a process's rows by `vote.reward`'s default: 1 for the majority's answer, else 0.

    Args:
        prompts: texts or chats, those of a group side by side.
        completions: a text or the turns of the assistant for each.
        log_metric: what TRL gives to log a figure.
        columns: what else TRL passes; no column is read, gold answers least of all.
    """
    return _rewards(_default_rules(), prompts, completions, log_metric)


def voting(**settings: Any) -> Callable[..., list[float]]:
    """A reward function like `majority`, under other settings of the vote: `voting(grader="exact", reward="gated")`.

    Raises:
        UsageError: a setting is wrong.
    """
    rules = _rules(load_config(None, {f"vote.{name}": value for name, value in settings.items()}))

    def votes(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        return _rewards(rules, prompts, completions, log_metric)

    # TRL logs what a function pays under its name.
    votes.__name__ = "_".join(["votes", *(f"{name}={value}" for name, value in settings.items())])
    return votes


@cache
def _default_rules() -> Rules:
    """One grader for all batches: its process takes a while to start."""
    return _rules(Config())


def _rules(config: Config) -> Rules:
    return build_rules(config.vote, AnswerKey())


def _rewards(
    rules: Rules,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    log_metric: Callable[[str, float], None] | None,
) -> list[float]:
    state = PartialState()
    rows = [[(prompt, _text(completion)) for prompt, completion in zip(prompts, completions, strict=True)]]
    shares: list[list[tuple[Any, str]]] = gather_object(rows)
    tallies = [vote(group, rules) for group in _groups([row for share in shares for row in share])]
    if log_metric is not None:
        for name, figure in FIGURES.items():
            log_metric(name, sum(map(figure, tallies)) / len(tallies))
    rewards = [reward for tally in tallies for reward in tally.rewards_G]
    start = sum(len(share) for share in shares[: state.process_index])
    return rewards[start : start + len(prompts)]


def _groups(rows: Sequence[tuple[Any, str]]) -> Iterator[Group]:
    """The rows that stand together and have one prompt, as rollouts of a problem."""
    for number, (prompt, group) in enumerate(groupby(rows, lambda row: row[0])):
        problem = Problem(str(number), prompt if isinstance(prompt, str) else tuple(prompt), number)
        rollouts = (Rollout(Mind(-1 - n), (), (), (), text, "stop", 0) for n, (_, text) in enumerate(group))
        yield Group(problem, tuple(rollouts))


def _text(completion: Any) -> str:
    """What a completion says: a text, or the last turn of a chat."""
    if isinstance(completion, str):
        return completion
    content = spoken(completion[-1].get("content")) if completion else None
    return content if isinstance(content, str) else ""
