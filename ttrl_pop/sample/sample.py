"""sample: problems × minds → groups."""

from collections.abc import Iterator, Mapping, Sequence

from ttrl_pop.ranks.ranks import ALONE, Ranks
from ttrl_pop.ranks.shards import cut, together
from ttrl_pop.sample.backend import Backend, Request, Weights
from ttrl_pop.sample.incoming import checked
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
    shards: int = 1,
    ranks: Ranks = ALONE,
) -> Iterator[Group]:
    """Let every mind answer every problem `samples_per_mind` times; yield each group when its last rollout is done.

    The engine is given a shard at a time: what it writes together, and thus how it rounds, does not depend on how many
    processes share them. Several processes call this alike, and all yield all groups, once everybody has written.

    Token choices are drawn from the stream (`purpose`, seed, step, problem, mind, sample): neither the other
    problems nor the other minds of the step change what is written.

    Args:
        prompt_ids: token ids by problem id.
        minds: None is the model without a mind.
        weights: whose weights write.
        shards: parts that the rollouts are cut into (`ttrl_pop.ranks.shards`).
    """
    requests = [
        Request(ids, mind, (purpose, seed, step, problem.id, mind.seed if mind else 0, s))
        for problem in problems
        for ids in (prompt_ids[problem.id],)
        for mind in minds
        for s in range(samples_per_mind)
    ]
    size = len(minds) * samples_per_mind
    parts = _parts(backend, requests, shards)
    written = _written(backend, requests, [parts[shard] for shard in ranks.owned(shards)], weights)
    done = 0
    waiting: dict[int, dict[int, Rollout]] = {}
    for index, rollout in written if ranks.size == 1 else _exchanged(backend, written, ranks):
        number, member = divmod(index, size)
        rollouts = waiting.setdefault(number, {})
        rollouts[member] = rollout
        if len(rollouts) == size:
            yield Group(problems[number], tuple(rollouts[i] for i in range(size)))
            done += 1
            del waiting[number]
    if done < len(problems):
        raise RuntimeError(f"the backend left {len(problems) - done} of {len(problems)} problems without all rollouts")


def _parts(backend: Backend, requests: Sequence[Request], shards: int) -> list[list[int]]:
    """Numbers of the requests of each shard, in order. How long a rollout becomes nobody knows: all count alike."""
    order = together([(backend.reader(request), request.prompt_ids) for request in requests])
    parts: list[list[int]] = [[] for _ in range(shards)]
    for index, shard in sorted(zip(order, cut([1] * len(order), shards), strict=True)):
        parts[shard].append(index)
    return parts


def _written(
    backend: Backend, requests: Sequence[Request], parts: Sequence[Sequence[int]], weights: Weights
) -> Iterator[tuple[int, Rollout]]:
    """The rollouts of some of the requests as they are done, with their numbers; one part after the other."""
    for part in filter(None, parts):
        asked = [requests[index] for index in part]
        for place, rollout in checked(backend, asked, backend.rollouts(asked, weights)):
            backend.meter.add(rollout)
            yield part[place], rollout


def _exchanged(backend: Backend, written: Iterator[tuple[int, Rollout]], ranks: Ranks) -> Iterator[tuple[int, Rollout]]:
    """The rollouts of all processes by their numbers, each process having written its own. Where memory ran out in one
    of them, all go on with as little as it."""
    own = list(written)
    told = ranks.exchange((own, backend.limits()))
    limits = [limits for _, limits in told]
    lowest = {name: min(each[name] for each in limits if name in each) for name in sorted(set().union(*limits))}
    if lowest != backend.limits():
        backend.restore_limits(lowest)
    for rank, (rollouts, _) in enumerate(told):
        for _, rollout in rollouts if rank != ranks.rank else ():
            backend.meter.add(rollout)
    # As one process alone would write them: ranks have their shards in order.
    for rollouts, _ in told:
        yield from rollouts
