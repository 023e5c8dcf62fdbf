"""How much there is to do: problems, votes, rollouts and tokens of each part of a command. Pure arithmetic.

Simplification: every completion is taken to be as long as the limit allows (`sampling.max_new_tokens`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ttrl_pop import randomness
from ttrl_pop.config import Config
from ttrl_pop.packing.budget import Budget
from ttrl_pop.packing.radix import NodeId, Run, grow
from ttrl_pop.run.workload import measurements
from ttrl_pop.types import Mind


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a command in which rollouts are written."""

    name: str
    problems: int
    """Different problems that are asked."""
    votes: int
    """Rollouts of a problem at each visit."""
    visits: int
    """Times that a problem is asked, over all problems."""
    batch: int
    """Problems that are asked at once, at most."""
    readers: int = 1
    """Minds that read each prompt for themselves."""
    learns: bool = False

    @property
    def rollouts(self) -> int:
        """Rollouts that are written."""
        return self.visits * self.votes


@dataclass(frozen=True, slots=True)
class Forwards:
    """How much one forward holds at most."""

    read: int
    """Prompt tokens."""
    learn: int
    """Tokens of a micro-batch."""
    logits: int
    """States whose logits are made at once."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """How prompts fill the forwards that read them."""

    mean: float
    """Tokens of a prompt."""
    longest: int
    packed: float
    """Tokens that pass the layers for a prompt and one reader, where what all begin with is read once."""
    per_forward: float
    """Prompts in a forward."""


def training(
    config: Config, problems: int, readers: int, calibration: int, chunk: int, held: int = 0
) -> Iterator[Part]:
    """Yield the parts of `run`, in the order in which they come.

    Args:
        readers: minds that read each prompt for themselves.
        calibration: problems that sigma is found on; 0 where it is given.
        chunk: problems of a survey that are asked at once.
        held: problems held out.
    """
    if calibration:
        yield Part("calibration", calibration, 1, calibration, calibration)
    if config.baseline:
        yield survey("baseline", config, problems, readers, chunk)
    if config.steps:
        yield from _steps(config, problems, readers)
    if held:
        visits = held * measurements(config)
        yield Part("problems held out", held, config.group_size, visits, min(chunk, held), readers)
    if config.answers:
        yield survey("answers", config, problems, readers, chunk)


def _steps(config: Config, problems: int, readers: int) -> Iterator[Part]:
    """The parts of training itself."""
    per_step = min(config.problems_per_step, problems)
    visits, visited = config.steps * per_step, _visited(config, problems)
    if config.vote.labels != "minds":
        votes = config.vote.label_rollouts or config.group_size
        once = config.vote.labels == "base"
        yield Part(f"labels ({config.vote.labels})", visited, votes, visited if once else visits, per_step)
    yield Part("steps", visited, config.group_size, visits, per_step, readers, learns=True)


def survey(name: str, config: Config, problems: int, readers: int, chunk: int) -> Part:
    """All problems asked once, without learning."""
    return Part(name, problems, config.group_size, problems, min(chunk, problems), readers)


def _visited(config: Config, problems: int) -> int:
    """Different problems that the steps ask."""
    if config.steps * config.problems_per_step < problems:
        return config.steps * config.problems_per_step
    batches = randomness.batches(config.seed, problems, config.problems_per_step)
    seen: set[int] = set()
    for _ in range(config.steps):
        seen.update(next(batches))
        if len(seen) == problems:
            break
    return len(seen)


def packed_prompts(prompts: Sequence[tuple[int, ...]], tokens: int) -> Prompts:
    """How these prompts, asked at once, fill forwards of at most `tokens` tokens, each as one mind reads it."""
    reader = Mind(1)
    budget = Budget(tokens, prompts)
    forwards: list[list[tuple[int, ...]]] = [[]]
    taken = 0
    for prompt in sorted(prompts, key=len):
        if budget.trees and not budget.fits(prompt, reader):
            taken += budget.taken
            budget.clear()
            forwards.append([])
        budget.take(prompt, reader)
        forwards[-1].append(prompt)
    taken += budget.taken
    lengths = [len(prompt) for prompt in prompts]
    count = len(prompts)
    # Readers of one prompt share a forward where it has room.
    return Prompts(
        mean=sum(lengths) / count,
        longest=max(lengths),
        packed=sum(map(_distinct, forwards)) / count,
        per_forward=max(1.0, tokens * count / taken),
    )


def _distinct(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens of prompts of one reader in one forward, where what some begin with alike is read once."""
    runs: list[Run] = []
    sequences: dict[NodeId, tuple[int, ...]] = {(number, None): prompt for number, prompt in enumerate(prompts)}
    grow(sequences, None, (), runs)
    return sum(run.length for run in runs)


def tokens(part: Part, prompts: Prompts, new_tokens: int) -> Mapping[str, int]:
    """Prompt tokens that are read, each once for each reader, and new tokens at most."""
    return {
        "prompt_tokens": round(part.visits * part.readers * prompts.mean),
        "new_tokens": part.rollouts * new_tokens,
    }
