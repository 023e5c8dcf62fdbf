"""A request to `NAME/vote`: one for every mind, and the answer of the majority.

Minds and tokens are drawn as `ttrl-pop eval` draws them: from the request's `seed` (else the run's) and, as the
problem's id, `id` in its `metadata`. Who sends the prompt of a problem under its id gets the label of `eval`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ttrl_pop import randomness
from ttrl_pop.population.base import spawned
from ttrl_pop.serve.names import Served, mind
from ttrl_pop.types import FinishReason, Group, Mind, Problem, Rollout, Tally, mean_logprob
from ttrl_pop.vote.rules import Rules, build_rules
from ttrl_pop.vote.vote import vote

ASKED = "asked"
"""Id of a problem that has none."""


@dataclass(frozen=True, slots=True)
class Ballots:
    """The requests of a vote, and whose each is."""

    bodies: tuple[dict[str, Any], ...]
    minds: tuple[Mind, ...]
    chat: bool
    logprobs: bool
    """Whether the client asked for those of the reply."""


def rules_of(served: Served) -> Rules:
    """How answers are voted on: as in the run, with nothing rewarded."""
    return build_rules(served.config.vote, rewards=False)


def check_mindful(body: dict[str, Any]) -> None:
    """What a request may not have that a mind is to answer.

    Raises:
        ValueError: with it no mind would.
    """
    if not isinstance(extra := body.get("vllm_xargs"), dict | None):
        raise ValueError(f"vllm_xargs must be an object, got {extra!r}")
    if body.get("use_beam_search"):
        raise ValueError("beam search knows no minds; leave use_beam_search out, or ask NAME/base")


def ballots(served: Served, body: dict[str, Any], chat: bool) -> Ballots:
    """The request of every mind.

    Raises:
        ValueError: the request asks for what a vote cannot give.
    """
    if body.get("stream"):
        raise ValueError("a vote has no answer before all minds have written; leave stream out")
    if body.get("n") not in (None, 1):
        raise ValueError("a vote has one answer; leave n out")
    if body.get("echo"):
        raise ValueError("answers are read from what minds write, not from the prompt; leave echo out")
    check_mindful(body)
    if not chat and not _is_one(body.get("prompt")):
        raise ValueError("a vote answers one prompt; send each prompt by itself")
    config = served.config
    # What is null is not said.
    body = {key: value for key, value in body.items() if value is not None}
    seed = body.get("seed", config.seed)
    if type(seed) is not int:
        raise ValueError(f"seed must be an integer, got {seed!r}")
    metadata = body.get("metadata")
    problem = str(metadata["id"]) if isinstance(metadata, dict) and "id" in metadata else ASKED
    sampling = config.sampling
    longest = {"max_completion_tokens", "max_tokens"} & body.keys()
    # A chat says whether, a completion how many.
    asked = body.get("logprobs", False) is not False
    whole = {
        # A model's own settings would stand in their place.
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        **({} if longest else {"max_tokens": sampling.max_new_tokens}),
        **({"stop": list(sampling.stop)} if sampling.stop else {}),
        # Without their marks thoughts are like speech.
        **({"skip_special_tokens": False} if served.marked else {}),
        **{key: value for key, value in body.items() if key not in ("n", "stream", "seed", "metadata", "model")},
        # For votes that count as sure as they are.
        **({} if asked else {"logprobs": True if chat else 0}),
    }
    bodies, owners = [], []
    for each in spawned(seed, randomness.OUTSIDE_TRAINING, config.population.minds):
        who = mind(served, each.seed)
        for sample in range(config.population.samples_per_mind):
            key = ("token", seed, randomness.OUTSIDE_TRAINING, problem, each.seed, sample)
            extra = {**(body.get("vllm_xargs") or {}), **(who.mind or {})}
            bodies.append(
                {**whole, "model": who.model, "seed": randomness.seed(*key), **({"vllm_xargs": extra} if extra else {})}
            )
            owners.append(each)
    return Ballots(tuple(bodies), tuple(owners), chat, asked)


def given_up(answers: Sequence[dict[str, Any]]) -> bool:
    """Whether the engine has left off in the middle of what a mind wrote, as one that is stopped or paused does."""
    return any(answer["choices"][0]["finish_reason"] == "abort" for answer in answers)


def tally(rules: Rules, given: Ballots, answers: Sequence[dict[str, Any]]) -> Tally:
    """The vote on what the minds have written.

    Args:
        answers: of vLLM, in the order of the requests.
    """
    # What was asked plays no part in a vote, but how: as turns or as a text.
    problem = Problem(ASKED, () if given.chat else "", 0)
    rollouts = tuple(_rollout(owner, answer, given.chat) for owner, answer in zip(given.minds, answers, strict=True))
    if any(_is_parted(answer) for answer in answers):
        rules = replace(rules, thinking=False)
    return vote(Group(problem, rollouts), rules)


def answer(served: Served, given: Ballots, told: Tally, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The reply: what the surest of the majority has written, with the votes beside it; of all, where nobody has an
    answer."""
    rollouts = told.group.rollouts_G
    majority = told.clusters[0].members if told.clusters else range(len(rollouts))
    sure = [-math.inf if (mean := mean_logprob(rollout)) is None else mean for rollout in rollouts]
    chosen = max(majority, key=lambda member: (sure[member], -member))
    reply: dict[str, Any] = json.loads(json.dumps(answers[chosen]))
    reply["model"] = f"{served.name}/vote"
    if not given.logprobs:
        reply["choices"][0]["logprobs"] = None
    usages = [each.get("usage") or {} for each in answers]
    reply["usage"] = {
        key: sum(int(usage.get(key) or 0) for usage in usages)
        for key in ("prompt_tokens", "completion_tokens", "total_tokens")
    }
    reply["vote"] = {
        "label": told.label,
        "agreement": told.agreement,
        "margin": told.margin,
        "rollouts": len(rollouts),
        "abstained": sum(each is None for each in told.answers_G),
        "clusters": [
            {"answer": cluster.answer, "votes": len(cluster.members), "share": float(cluster.share)}
            for cluster in told.clusters
        ],
        "minds": [str(rollout.mind.seed) for rollout in rollouts],
        "answers": list(told.answers_G),
    }
    return reply


def _is_one(prompt: Any) -> bool:
    """Whether it is one prompt: a text, or its tokens."""
    return isinstance(prompt, str) or (isinstance(prompt, list) and all(type(token) is int for token in prompt))


def _is_parted(answer: Mapping[str, Any]) -> bool:
    """Whether vLLM has taken the thoughts out of the text, marks and all, as it does with a reasoning parser."""
    message = answer["choices"][0].get("message") or {}
    return any(message.get(key) for key in ("reasoning", "reasoning_content"))


def _rollout(owner: Mind, answer: dict[str, Any], chat: bool) -> Rollout:
    choice = answer["choices"][0]
    if chat:
        text = choice["message"].get("content") or ""
        logprobs = [row["logprob"] for row in (choice.get("logprobs") or {}).get("content") or []]
    else:
        text = choice["text"]
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs") or []
    reason: FinishReason = "stop" if choice["finish_reason"] == "stop" else "length"
    return Rollout(owner, (), (), tuple(logprobs), text, reason, 0)
