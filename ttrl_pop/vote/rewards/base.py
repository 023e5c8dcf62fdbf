"""What a reward is: a pure function from a `Ballot`, one group's answers, to one number per rollout; and sums of them.

A reward is named by one term or by a weighted sum of them: `majority`, `gated+0.2*format+0.5*overlong`. A term of
your own is a callable `Ballot -> tuple[float, ...]`, or a class without arguments whose instances are, named as
`package.module:Name` (see examples/plugins/reward_short.py). A class that sets `needs_gold = True` is built with the
answer key and the grader; nothing else ever receives the key.

p_c is the share of cluster c among all votes; p1 ≥ p2 are the two largest.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from numbers import Real
from typing import Any, TypeAlias

from ttrl_pop.errors import UsageError
from ttrl_pop.plugins import load, takes
from ttrl_pop.types import AnswerKey
from ttrl_pop.vote.graders.base import Grader


@dataclass(frozen=True, slots=True)
class Ballot:
    """One group's answers, clustered: all that a reward may look at.

    `_G` is the order of the rollouts. In training all fields are known; of rollouts from elsewhere (`ttrl-pop vote`)
    those that their rows tell.
    """

    problem_id: str
    answers_G: tuple[str | None, ...]
    """Extracted answers; None is an abstention."""
    cluster_G: tuple[int | None, ...]
    """Index of each answer's cluster, the one with most votes being 0; None for an abstention."""
    shares: tuple[float, ...]
    """Each cluster's share of all votes, largest first. They sum to less than 1 where rollouts abstained."""
    label: str | None
    """The pseudo-label; None when nobody answered."""
    label_cluster: int | None
    """Index of the cluster that equals the label; None when none does."""
    texts_G: tuple[str, ...]
    finished_G: tuple[bool, ...]
    """False where the token limit cut the completion off."""
    lengths_G: tuple[int, ...]
    """Tokens of each completion, the one that ended it among them; 0 where rollouts came without token ids."""
    logprob_G: tuple[float | None, ...]
    """Mean log-probability of each completion's tokens, nats; None where none is known."""
    token_limit: int | None
    """Longest completion that sampling allowed, in tokens; None where it is not known."""


Reward: TypeAlias = Callable[[Ballot], tuple[float, ...]]
"""A group's ballot → one finite number per rollout."""


def paid(name: str, reward: Reward, ballot: Ballot) -> tuple[float, ...]:
    """What the reward of that name pays for each rollout of the ballot.

    Raises:
        UsageError: it returns anything but one finite number per rollout.
    """
    rule = (
        f"reward {name!r}, problem {ballot.problem_id!r}: a reward must return one finite number per rollout "
        f"({len(ballot.answers_G)})"
    )
    try:
        returned: Any = reward(ballot)
    except TypeError as error:
        # Raised by the call itself: something that takes no ballot, such as a function of the system's.
        if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            raise
        raise UsageError(f"{rule}, got none: it takes no ballot ({error})") from None
    try:
        column = iter(returned)
    except TypeError:
        raise UsageError(f"{rule}, got a {type(returned).__name__}") from None
    # What a generator raises is its own; one that does not end is cut off.
    values = tuple(islice(column, len(ballot.answers_G) + 1))
    for value in values:
        if not isinstance(value, Real):
            raise UsageError(f"{rule}, got a {type(value).__name__} among them; return a tuple of float(...)")
    if len(values) != len(ballot.answers_G) or not all(map(_is_finite, values)):
        raise UsageError(f"{rule}, got {values!r}")
    return tuple(map(float, values))


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def needs_gold(name: str) -> bool:
    """Whether a term of this reward looks at gold answers.

    Raises:
        UsageError: there is no such reward.
    """
    terms = (load("reward", term.rpartition("*")[2].strip()) for term in name.split("+"))
    return any(getattr(term, "needs_gold", False) for term in terms)


def build_reward(name: str, answers: AnswerKey, grader: Grader) -> Reward:
    """The reward that `name` stands for, ready to call: a term, or a sum of terms with weights (`0.2*format`).

    Raises:
        UsageError: there is no such reward, it is not callable, or it needs gold and `answers` is empty.
    """
    terms = [_term(text.strip(), name, answers, grader) for text in name.split("+")]
    if len(terms) == 1 and terms[0][0] == 1.0:
        return terms[0][2]

    def total(ballot: Ballot) -> tuple[float, ...]:
        columns = [[weight * value for value in paid(term, reward, ballot)] for weight, term, reward in terms]
        return tuple(math.fsum(values) for values in zip(*columns, strict=True))

    return total


def _term(text: str, whole: str, answers: AnswerKey, grader: Grader) -> tuple[float, str, Reward]:
    """One summand: its weight, its name and its reward."""
    factor, star, name = text.rpartition("*")
    try:
        weight = float(factor) if star else 1.0
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise UsageError(f"a reward is NAME or WEIGHT*NAME, joined by +; got {text!r} in {whole!r}")
    name = name.strip()
    loaded = load("reward", name)
    reward: Reward
    if not isinstance(loaded, type):
        reward = loaded
    elif not getattr(loaded, "needs_gold", False):
        reward = _without_arguments(name, loaded)
    elif answers and not takes(loaded, 2):
        raise UsageError(f"reward {name!r}: a reward class that needs gold must take (answers, grader)")
    elif answers:
        reward = loaded(answers, grader)
    else:
        raise UsageError(
            f"reward {name} needs gold answers, none came; pass --gold or give the problems an answer field"
        )
    if not callable(reward):
        raise UsageError(f"a reward must be callable on a ballot, got {name!r}, a {type(reward).__name__}")
    return weight, name, reward


def _without_arguments(name: str, kind: type) -> Any:
    if not takes(kind, 0):
        raise UsageError(
            f"reward {name!r}: a reward class is made without arguments, got {kind.__name__}{inspect.signature(kind)}; "
            "give each a default"
        )
    return kind()
