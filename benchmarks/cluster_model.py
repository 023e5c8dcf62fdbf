"""A discrete-event model of a run on many GPUs: what a step costs when processes share it as `ttrl_pop.ranks` has them,
and what failures cost on top.

A step goes as the program's: the first process sends the weights and tells the others to write; each writes its shards,
one after the other; all get all texts; each votes on its share; each computes the gradient of its shards; gradients are
added pair by pair in the tree of `ttrl_pop.ranks.shards`; the first steps the optimizer, reports and saves alone.
Which rollout is in which shard and who adds whose sum is asked of the program's own functions.

Simplifications:
1. An engine writes some rows at once; a row that ends makes room for the next at once. A decode step takes what was
   measured at its number of rows. Below the fewest rows measured it is known in bounds alone, and so are all results:
   `Narrow`.
2. Reading prompts and learning go by tokens: once for each mind and problem of a shard. What prompts of different
   problems share is not counted as shared.
3. All processes are equally fast. Messages do not slow each other.
4. Failures come to each GPU by chance alone and end the step under way for all; what is lost is the work since the last
   checkpoint, as a run goes on exactly from there.
"""

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np

from ttrl_pop.ranks import shards

Narrow = Literal["best", "worst"]
"""How fast a decode step of fewer rows is than were measured: at best it falls in proportion, down to the floor; at
worst it does not fall at all."""

Cut = Literal["minds", "problems"]
"""How rollouts become shards: by minds first, as the program has it where minds read for themselves, or by problems."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What was measured of one GPU, or assumed of what lies between several. Seconds, bytes and tokens."""

    decode: tuple[tuple[int, float], ...]
    """(rows, seconds of a decode step of so many), by rows."""
    decode_floor: float
    """Seconds of a decode step that no number of rows goes below: reading the weights."""
    slots: int
    """Rows that an engine writes at once."""
    prefill: float
    """Tokens of prompts read in a second."""
    learner: float
    """Tokens learned from in a second."""
    learner_floor: float
    """Seconds of a micro-batch, however small."""
    learner_batch: int
    """Tokens of a micro-batch."""
    update: float
    """Seconds of the optimizer's step."""
    trained_bytes: float
    """Of the trained parameters, and of their gradient."""
    digest: float
    """Bytes of them that are hashed in a second."""
    vote: float
    """Seconds to vote on a problem."""
    text_bytes: float
    """Of a token of a rollout, as it is sent."""
    pack: float
    """Seconds to pack a token of a rollout, or to unpack it."""
    report: float
    """Seconds of the first process for each token of a step: rows, files."""
    save: float
    """Seconds of a checkpoint."""
    start: float
    """Seconds from a failure to the first step after it."""
    per_machine: int = 8
    """GPUs of a machine."""
    inside: float = 100e9
    """Bytes a second between two GPUs of a machine."""
    between: float = 25e9
    """Bytes a second between two machines."""
    texts: float = 1e9
    """Bytes a second of messages between processes, which go from CPU to CPU."""
    latency: float = 100e-6
    """Seconds until a message arrives."""

    def decode_step(self, rows: int, narrow: Narrow) -> float:
        """Seconds of a decode step of so many rows."""
        points = self.decode
        fewest, fastest = points[0]
        if rows < fewest:
            at_best = max(self.decode_floor, fastest * rows / fewest)
            return fastest if narrow == "worst" else min(fastest, at_best)
        most, slowest = points[-1]
        if rows > most:
            return slowest * rows / most
        return float(np.interp(rows, [count for count, _ in points], [seconds for _, seconds in points]))


@dataclass(frozen=True, slots=True)
class Asked:
    """A problem of a step, with what its minds write."""

    prompt: int
    """Tokens."""
    lengths: tuple[int, ...]
    """Tokens of each completion, mind by mind."""


@dataclass(frozen=True, slots=True)
class Row:
    """A completion to be written."""

    problem: int
    member: int
    prompt: int
    length: int


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of a step by part; of what all do, the part of whoever is last."""

    weights: float
    sample: float
    texts: float
    vote: float
    gradient: float
    add: float
    alone: float
    """What the first process does while the others wait, without a checkpoint."""
    idle: float
    """Seconds that processes wait on average for the last to have written, and computed gradients."""

    @property
    def seconds(self) -> float:
        """From one update to the next."""
        return self.weights + self.sample + self.texts + self.vote + self.gradient + self.add + self.alone


def rows_by_shard(problems: Sequence[Asked], count: int, cut: Cut = "minds", written: bool = False) -> list[list[Row]]:
    """The completions of each of `count` shards.

    Args:
        written: whether it is known how long they are, as it is to the learner, whose shards are even by tokens.
    """
    rows = [
        Row(number, member, asked.prompt, length)
        for number, asked in enumerate(problems)
        for member, length in enumerate(asked.lengths)
    ]
    if cut == "minds":
        rows.sort(key=lambda row: (row.member, row.problem))
    found: list[list[Row]] = [[] for _ in range(count)]
    costs = [row.prompt + row.length if written else 1 for row in rows]
    for row, shard in zip(rows, shards.cut(costs, count), strict=True):
        found[shard].append(row)
    return found


def writing(rows: Iterable[Row], rates: Rates, narrow: Narrow) -> float:
    """Seconds in which an engine writes these completions."""
    waiting = [row.length for row in reversed([*rows])]
    live: list[int] = []
    done, seconds = 0, 0.0
    while waiting or live:
        while waiting and len(live) < rates.slots:
            heapq.heappush(live, done + waiting.pop())
        ends = live[0]
        seconds += (ends - done) * rates.decode_step(len(live), narrow)
        done = ends
        while live and live[0] == done:
            heapq.heappop(live)
    return seconds


def prompts(rows: Iterable[Row]) -> int:
    """Tokens of prompts that are read: each mind reads each problem once."""
    return sum({(row.problem, row.member): row.prompt for row in rows}.values())


def learning(tokens: int, rates: Rates) -> float:
    """Seconds to compute the gradient of a shard."""
    if not tokens:
        return 0.0
    batches = math.ceil(tokens / rates.learner_batch)
    return batches * max(rates.learner_floor, tokens / batches / rates.learner)


def adding(clocks: Sequence[float], rates: Rates) -> list[float]:
    """When each process has done its part in adding gradients, each ready at its own time; the first has their sum."""
    clocks = [*clocks]
    size = len(clocks)
    groups = {group for rank in range(size) for group in shards.splits(rank, size)}
    for low, middle, _ in sorted(groups, key=lambda group: (group[2] - group[0], group[0])):
        near = low // rates.per_machine == middle // rates.per_machine
        sent = rates.latency + rates.trained_bytes / (rates.inside if near else rates.between)
        clocks[low] = clocks[middle] = max(clocks[low], clocks[middle]) + sent
    return clocks


def step(
    problems: Sequence[Asked], gpus: int, count: int, rates: Rates, narrow: Narrow = "worst", cut: Cut = "minds"
) -> Step:
    """A step, shared by `gpus` processes and cut into `count` shards.

    Args:
        count: a power of two, no less than `gpus`.
    """
    owned, lessons = (
        [[parts[shard] for shard in shards.owned(rank, gpus, count)] for rank in range(gpus)]
        for parts in (rows_by_shard(problems, count, cut, known) for known in (False, True))
    )
    written = [[sum(row.length for row in part) for part in own] for own in owned]
    wrote = [
        sum(writing(part, rates, narrow) for part in own) + sum(map(prompts, own)) / rates.prefill for own in owned
    ]
    learned = [sum(learning(prompts(part) + sum(row.length for row in part), rates) for part in own) for own in lessons]
    tokens = sum(map(sum, written))
    votes = rates.vote * math.ceil(len(problems) / gpus)
    alone = rates.update + rates.report * tokens
    idle = max(wrote) - sum(wrote) / gpus + max(learned) - sum(learned) / gpus
    if gpus == 1:
        # It votes while it writes.
        return Step(0.0, wrote[0], 0.0, max(0.0, votes - wrote[0]), learned[0], 0.0, alone, 0.0)
    rounds = math.ceil(math.log2(gpus)) * rates.latency
    machines = math.ceil(gpus / rates.per_machine)
    most = max(map(sum, written))
    hashed = 2 * rates.trained_bytes / rates.digest
    # Every message is as long as the longest, and each process unpacks all others'.
    texts = rounds + rates.pack * (most + tokens - sum(written[0])) + gpus * most * rates.text_bytes / rates.texts
    return Step(
        weights=hashed + rounds + rates.trained_bytes / (rates.between if machines > 1 else rates.inside),
        sample=max(wrote),
        texts=texts,
        vote=votes + rounds,
        gradient=hashed + rounds + max(learned),
        # Sums are exchanged before gradients are: all begin at once.
        add=rounds + adding([0.0] * gpus, rates)[0],
        alone=alone,
        idle=idle,
    )


def elapsed(
    steps: Sequence[float], every: int, save: float, start: float, work: float, failures: Iterable[float]
) -> float:
    """Seconds until so many seconds of work are done, where each failure takes the run back to its last checkpoint.

    Args:
        steps: seconds of each step; after the last comes the first again.
        every: steps between checkpoints.
        save: seconds of a checkpoint, which are part of the work.
        start: seconds from a failure until work goes on.
        work: seconds of work to do.
        failures: when they happen, in order.
    """
    # As many rounds as make checkpoints fall on the same steps again.
    rounds = math.lcm(len(steps), every) // len(steps)
    kept = [0.0]
    position = 0.0
    for number, seconds in enumerate([*steps] * rounds, start=1):
        position += seconds
        if number % every == 0:
            position += save
            kept.append(position)
    saved, works_from = 0.0, 0.0
    for moment in failures:
        if works_from + work - saved <= moment:
            break
        done = saved + max(0.0, moment - works_from)
        turns, rest = divmod(done, position)
        saved = max(saved, turns * position + kept[int(np.searchsorted(kept, rest, side="right")) - 1])
        works_from = moment + start
    return works_from + work - saved


def failures(gpus: int, mean_time: float, seed: int) -> Iterable[float]:
    """When one of so many GPUs fails, each on average once in `mean_time` seconds; endless."""
    rng = np.random.default_rng([seed, gpus])
    return accumulate(iter(lambda: float(rng.exponential(mean_time / gpus)), None))


def drawn(known: Sequence[Asked], problems: int, rollouts: int, seed: int) -> list[Asked]:
    """As many problems as are asked for, drawn with replacement from those known. Each keeps lengths of its own, so
    that hard ones are long for all minds; which mind has which is drawn, as minds of a step are new."""
    rng = np.random.default_rng([seed, problems, rollouts])
    found = []
    for number in rng.integers(len(known), size=problems):
        one = known[int(number)]
        lengths = rng.choice(one.lengths, rollouts, replace=rollouts > len(one.lengths))
        found.append(Asked(one.prompt, tuple(lengths.tolist())))
    return found
