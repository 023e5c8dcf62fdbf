"""sample: problems × minds → groups."""

from collections.abc import Iterator, Mapping, Sequence

from ttrl_pop.sample.backend import Backend, Request, Weights
from ttrl_pop.types import Group, Mind, Problem, Rollout


def sample(
    backend: Backend,
    prompt_ids: Mapping[str, tuple[int, ...]],
    problems: Sequence[Problem],
    minds: Sequence[Mind | None],
    samples_per_mind: int,
    seed: int,
    step: int,
    purpose: str = "token",
    weights: Weights = "policy",
) -> Iterator[Group]:
    """Let every mind answer every problem `samples_per_mind` times; yield each group when its last rollout is done.

    Token choices are drawn from the stream (`purpose`, seed, step, problem, mind, sample): neither the other
    problems nor the other minds of the step change what is written.

    Args:
        prompt_ids: token ids by problem id.
        minds: None is the model without a mind.
        weights: whose weights write.
    """
    requests = [
        Request(ids, mind, (purpose, seed, step, problem.id, mind.seed if mind else 0, s))
        for problem in problems
        for ids in (prompt_ids[problem.id],)
        for mind in minds
        for s in range(samples_per_mind)
    ]
    size = len(minds) * samples_per_mind
    done = 0
    waiting: dict[int, dict[int, Rollout]] = {}
    for index, rollout in backend.rollouts(requests, weights):
        backend.meter.add(rollout)
        number, member = divmod(index, size)
        rollouts = waiting.setdefault(number, {})
        rollouts[member] = rollout
        if len(rollouts) == size:
            yield Group(problems[number], tuple(rollouts[i] for i in range(size)))
            done += 1
            del waiting[number]
    if done < len(problems):
        raise RuntimeError(f"the backend left {len(problems) - done} of {len(problems)} problems without all rollouts")
