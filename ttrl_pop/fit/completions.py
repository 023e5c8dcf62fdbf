"""What the base model wrote, laid out for the fit of latent minds: each completion read by a mind of its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ttrl_pop.kernels.memory import transfer
from ttrl_pop.packing.pack import Branch, Pack, Tree, pack
from ttrl_pop.types import Group, Mind, Rollout

FEWEST = 2
"""Completions of one problem that are read in one forward at least: their codes are balanced against each other."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion of the base model."""

    rollout: Rollout
    number: int
    """Among all, by which its random numbers are drawn: not by where it lies in a forward."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Completions packed into one row of N tokens, and where their tokens lie."""

    completions_B: tuple[Completion, ...]
    parts: tuple[int, ...]
    """How many completions in a row are of one problem."""
    packed: Pack
    tokens_B: tuple[tuple[int, ...], ...]
    """All tokens of each completion, its prompt's first."""
    owner_N: Int[Tensor, "N"]
    """Completion of each token."""
    window_BT: Int[Tensor, "B T"]
    """The last token of the prompt and those of the completion, what is behind them filled up."""
    real_BT: Bool[Tensor, "B T"]
    """Where there is a token."""
    sources_K: Int[Tensor, "K"]
    """Tokens that predict the completions' tokens, completion by completion."""
    targets_K: Int[Tensor, "K"]
    """Ids of those."""


def numbered(groups: Sequence[Group]) -> list[list[Completion]]:
    """Completions of each problem that have a token; problems without one are left out."""
    written = [[rollout for rollout in group.rollouts_G if rollout.completion_ids] for group in groups]
    written = [rollouts for rollouts in written if len(rollouts) >= FEWEST]
    starts = accumulate(map(len, written), initial=0)
    return [
        [Completion(rollout, start + i) for i, rollout in enumerate(rollouts)]
        for start, rollouts in zip(starts, written, strict=False)
    ]


def readings(problems: Sequence[Sequence[Completion]], token_budget: int, device: torch.device) -> Iterator[Reading]:
    """Yield all completions, as many in one forward as `token_budget` tokens allow; no fewer than two of a problem."""
    parts: list[Sequence[Completion]] = []
    taken = 0
    for part in chain(*(_parts_of(problem, token_budget) for problem in problems)):
        tokens = sum(map(_tokens, part))
        if parts and taken + tokens > token_budget:
            yield _reading(parts, device)
            parts, taken = [], 0
        parts.append(part)
        taken += tokens
    if parts:
        yield _reading(parts, device)


def _parts_of(problem: Sequence[Completion], token_budget: int) -> Iterator[Sequence[Completion]]:
    """Completions of a problem, cut into parts of about one size that each fit."""
    most = max(FEWEST, token_budget // max(map(_tokens, problem)))
    count = min(-(-len(problem) // most), len(problem) // FEWEST)
    for index in range(count):
        yield problem[len(problem) * index // count : len(problem) * (index + 1) // count]


def _tokens(completion: Completion) -> int:
    return len(completion.rollout.prompt_ids) + len(completion.rollout.completion_ids)


def _reading(parts: Sequence[Sequence[Completion]], device: torch.device) -> Reading:
    completions = tuple(chain(*parts))
    # Minds that stand in: completions of one mind would share what they begin with, and each has a code of its own.
    trees = [
        Tree(each.rollout.prompt_ids, Mind(b + 1), (Branch(each.rollout.completion_ids, Mind(b + 1)),))
        for b, each in enumerate(completions)
    ]
    packed = pack(trees, device)
    tokens = [(*chain(*packed.stems[b]), *chain(*packed.branches[b][0])) for b in range(len(trees))]
    owners = [0] * len(packed.ids_N)
    for b, row in enumerate(tokens):
        for token in row:
            owners[token] = b
    windows = [packed.sources(b, 0) for b in range(len(trees))]
    longest = max(map(len, windows))
    lengths = transfer([len(window) for window in windows], torch.long, device)
    return Reading(
        completions_B=completions,
        parts=tuple(map(len, parts)),
        packed=packed,
        tokens_B=tuple(tokens),
        owner_N=transfer(owners, torch.long, device),
        window_BT=transfer(
            [[*window, *[window[-1]] * (longest - len(window))] for window in windows], torch.long, device
        ),
        real_BT=torch.arange(longest, device=device) < lengths[:, None],
        sources_K=transfer([*chain(*(window[:-1] for window in windows))], torch.long, device),
        targets_K=transfer([*chain(*(each.rollout.completion_ids for each in completions))], torch.long, device),
    )
