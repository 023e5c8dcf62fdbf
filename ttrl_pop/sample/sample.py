"""sample: problems × minds → groups."""

from collections.abc import Iterator, Mapping, Sequence

from ttrl_pop.errors import UsageError
from ttrl_pop.model.policy import Policy
from ttrl_pop.sample.backend import Backend, Request
from ttrl_pop.types import Group, Mind, Problem, Rollout

TEMPLATE_ALLOWANCE = 256
"""Tokens that a chat template may add without the prompt's length being measured."""


def sample(
    backend: Backend,
    prompt_ids: Mapping[str, tuple[int, ...]],
    problems: Sequence[Problem],
    minds: Sequence[Mind | None],
    samples_per_mind: int,
    seed: int,
    step: int,
    stream: str = "token",
) -> Iterator[Group]:
    """Let every mind answer every problem `samples_per_mind` times; yield each group when its last rollout is done.

    Token choices are drawn from the stream (`stream`, seed, step, problem, mind, sample): neither the other
    problems nor the other minds of the step change what is written.

    Args:
        prompt_ids: token ids by problem id.
        minds: None is the base model without a mind.
    """
    requests = [
        Request(ids, mind, (stream, seed, step, problem.id, mind.seed if mind else 0, s))
        for problem in problems
        for ids in (prompt_ids[problem.id],)
        for mind in minds
        for s in range(samples_per_mind)
    ]
    size = len(minds) * samples_per_mind
    done = 0
    waiting: dict[int, dict[int, Rollout]] = {}
    for index, rollout in backend.rollouts(requests):
        place, member = divmod(index, size)
        rollouts = waiting.setdefault(place, {})
        rollouts[member] = rollout
        if len(rollouts) == size:
            yield Group(problems[place], tuple(rollouts[i] for i in range(size)))
            done += 1
            del waiting[place]
    if done < len(problems):
        raise RuntimeError(f"the backend left {len(problems) - done} of {len(problems)} problems without all rollouts")


class Prompts(Mapping[str, tuple[int, ...]]):
    """Token ids by problem id, encoded when asked for: a file of 100,000 problems costs nothing until it is visited."""

    def __init__(self, policy: Policy, problems: Sequence[Problem], max_new_tokens: int) -> None:
        """
        Raises:
            UsageError: a prompt and `max_new_tokens` together do not fit the model's context.
        """
        self._policy = policy
        self._problems = {problem.id: problem for problem in problems}
        room = policy.context_length - max_new_tokens
        if room < 1:
            raise UsageError(
                f"sampling.max_new_tokens {max_new_tokens} leaves no room for a prompt in the model's context of "
                f"{policy.context_length} tokens"
            )
        # The chat template can be missing or refuse an order of roles: say so before anything is written.
        kinds = {() if isinstance(p.prompt, str) else tuple(m["role"] for m in p.prompt): p for p in reversed(problems)}
        for problem in kinds.values():
            policy.encode(problem)
        for problem in problems:
            # No tokenizer makes more tokens than bytes, so only long prompts need to be encoded to be checked.
            if _bytes(problem) + TEMPLATE_ALLOWANCE > room and len(self[problem.id]) > room:
                raise UsageError(
                    f"problem {problem.id!r}: prompt of {len(self[problem.id])} tokens and {max_new_tokens} new ones "
                    f"do not fit the model's context of {policy.context_length}; shorten it or lower "
                    "sampling.max_new_tokens"
                )

    def __getitem__(self, problem_id: str) -> tuple[int, ...]:
        return self._policy.encode(self._problems[problem_id])

    def __iter__(self) -> Iterator[str]:
        return iter(self._problems)

    def __len__(self) -> int:
        return len(self._problems)


def _bytes(problem: Problem) -> int:
    if isinstance(problem.prompt, str):
        return len(problem.prompt.encode())
    return sum(len(message["content"].encode()) for message in problem.prompt)
