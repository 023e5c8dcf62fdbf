r"""Vote: a group of rollouts → extracted answers, clusters of equal answers, a pseudo-label, rewards.

TTRL (arXiv 2504.16084) takes the majority answer of a group as its label. Here answers are clustered by the
grader's canonical key, then clusters merge where the grader calls them equal in both directions. A rollout
without an answer abstains: it stays in the denominator of agreement, never wins and equals nothing, other
abstentions included.

Simplifications:

1. One vote per rollout, of equal weight.
2. A completion that the token limit cut inside its thoughts abstains only if it wrote `<think>` itself; where
   the chat template did, and no `</think>` came, the thoughts look like an answer's text.

Extraction is linear in the text's length: no pattern backtracks into what it has read.
"""

import importlib
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TypeAlias

from ttrl_pop.boxes import last_box
from ttrl_pop.errors import UsageError
from ttrl_pop.graders.base import Grader
from ttrl_pop.rewards import Ballot, Reward
from ttrl_pop.types import Cluster, FinishReason, Group, Tally

Extract: TypeAlias = Callable[[str, FinishReason], str | None]
"""(completion text, finish reason) → the answer, or None for an abstention."""

_ANSWER_LINE = re.compile(
    r"^[ \t>#*_-]*+(?:the[ \t]++)?(?:final[ \t]++)?answer[ \t*_]*+:(.*)", re.IGNORECASE | re.MULTILINE
)
_HASH_LINE = re.compile(r"^[ \t]*+####(?!#)(.*)", re.MULTILINE)
_DECIMAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?|\.[0-9]++)"
_NUMBER = re.compile(rf"(?<![\w.])[-+−–]?(?:[0-9]++ [0-9]++/[0-9]++|{_DECIMAL}(?:/[0-9]++(?:\.[0-9]++)?)?)")
_NUMBER_MAY_GO_ON = re.compile(r"(?:[./]|,[0-9]{0,2}| [0-9]++/?)?")


def extract_chat(text: str, finish_reason: FinishReason) -> str | None:
    r"""Answer of a chat completion, read after `</think>`; thoughts that never closed hold no answer.

    The last balanced, non-empty `\boxed{}`, else the last line `Answer: ...` (`**Answer:**`, `Final answer:`),
    else the last line `#### ...`, else None. Of a completion that the token limit cut off, the last line does
    not count as such a line: its end is missing. A box that was closed counts.
    """
    spoken = text[text.rfind("</think>") + len("</think>") :] if "</think>" in text else text
    if "<think>" in spoken:
        return None
    box = last_box(spoken)
    if box is not None:
        return box
    if finish_reason == "length":
        spoken = spoken[: spoken.rfind("\n") + 1]
    return _last_line(_ANSWER_LINE, spoken) or _last_line(_HASH_LINE, spoken)


def extract_raw(text: str, finish_reason: FinishReason) -> str | None:
    """Answer of a raw completion: the first number on its first non-blank line, else that line, else None.

    A number is signed or not, with thousands separators, decimals, as a/b or mixed; a sentence's period is no
    part of it. Where the token limit cut the line, a number at its very end (`5`, `3.`, `56,`, `1/`) may have gone on,
    and so may the line: neither is an answer.
    """
    line, newline, _ = text.lstrip().partition("\n")
    is_cut = finish_reason == "length" and not newline
    number = _NUMBER.search(line)
    if number and not (is_cut and _NUMBER_MAY_GO_ON.fullmatch(line, number.end())):
        return number[0]
    return None if is_cut else line.strip() or None


def resolve_extract(name: str, is_chat: bool) -> Extract:
    """`auto` by the kind of prompt, or the function that `package.module:function` names.

    Raises:
        UsageError: `name` is neither, cannot be imported or is not callable.
    """
    if name == "auto":
        return extract_chat if is_chat else extract_raw
    module_name, _, attribute = name.partition(":")
    if not (module_name and attribute):
        raise UsageError(f"extract must be auto or package.module:function, got {name!r}")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise UsageError(f"extract {name!r} cannot be imported ({error}); is its folder on PYTHONPATH?") from error
    except AttributeError as error:
        raise UsageError(f"extract {name!r}: module {module_name} has no {attribute!r}") from error
    if not callable(function):
        raise UsageError(f"extract {name!r} must be a function, got a {type(function).__name__}")
    extract: Extract = function
    return extract


def vote(group: Group, extract: str, grader: Grader, reward: Reward) -> Tally:
    """Label a group by its majority answer and reward its rollouts.

    Nothing depends on the order of the rollouts: clusters stand by size, those of one size by canonical key.

    Args:
        group: the G rollouts of one problem.
        extract: `auto` or `package.module:function`.
        grader: decides which answers are equal.
        reward: gives one finite number per rollout.

    Raises:
        UsageError: `extract` or `reward` breaks its interface.
    """
    extract_answer = resolve_extract(extract, group.problem.is_chat)
    answers_G: list[str | None] = []
    keys_G: list[str] = []
    for rollout in group.rollouts_G:
        answer = extract_answer(rollout.text, rollout.finish_reason)
        if not isinstance(answer, str | None):
            raise UsageError(f"extract {extract!r} must return str or None, got {type(answer).__name__}")
        key = grader.key(answer) if answer is not None else ""
        answers_G.append(answer if key else None)
        keys_G.append(key)
    clusters = _cluster(answers_G, keys_G, grader)
    cluster_of = {member: index for index, cluster in enumerate(clusters) for member in cluster.members}
    ballot = Ballot(
        problem_id=group.problem.id,
        answers_G=tuple(answers_G),
        cluster_G=tuple(cluster_of.get(index) for index in range(len(answers_G))),
        sizes=tuple(len(cluster.members) for cluster in clusters),
        label=clusters[0].answer if clusters else None,
        texts_G=tuple(rollout.text for rollout in group.rollouts_G),
    )
    rewards_G = tuple(reward(ballot))
    if len(rewards_G) != len(answers_G) or not all(math.isfinite(value) for value in rewards_G):
        raise UsageError(f"a reward must return one finite number per rollout ({len(answers_G)}), got {rewards_G!r}")
    return Tally(group, ballot.answers_G, clusters, ballot.label, rewards_G)


def _cluster(answers_G: Sequence[str | None], keys_G: Sequence[str], grader: Grader) -> tuple[Cluster, ...]:
    """Clusters of equal answers, largest first, ties by the smallest key in each."""
    spellings: dict[str, Counter[str]] = {}
    for answer, key in zip(answers_G, keys_G, strict=True):
        if answer is not None:
            spellings.setdefault(key, Counter())[answer] += 1
    root_of = _merge({key: _commonest(counts) for key, counts in spellings.items()}, grader)
    members: dict[str, list[int]] = {}
    merged: dict[str, Counter[str]] = {}
    for index, (answer, key) in enumerate(zip(answers_G, keys_G, strict=True)):
        if answer is not None:
            members.setdefault(root_of[key], []).append(index)
            merged.setdefault(root_of[key], Counter())[answer] += 1
    order = sorted(members, key=lambda root: (-len(members[root]), root))
    return tuple(Cluster(_commonest(merged[root]), tuple(members[root])) for root in order)


def _merge(answers: dict[str, str], grader: Grader) -> dict[str, str]:
    """Union-find: each key → the smallest key that it is connected to by `equal` in both directions."""
    root = {key: key for key in answers}

    def find(key: str) -> str:
        while root[key] != key:
            root[key] = root[root[key]]
            key = root[key]
        return key

    for a, b in combinations(sorted(answers), 2):
        root_a, root_b = find(a), find(b)
        if root_a != root_b and grader.equal(answers[a], answers[b]) and grader.equal(answers[b], answers[a]):
            root[max(root_a, root_b)] = min(root_a, root_b)
    return {key: find(key) for key in answers}


def _commonest(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))


def _last_line(pattern: re.Pattern[str], text: str) -> str | None:
    """What follows the mark on the last line that has the mark and something after it."""
    for rest in reversed(pattern.findall(text)):
        if answer := str(rest).strip("*_` \t\r"):
            return answer
    return None
