"""Rollouts by our own batched loop over a transformers model, with weights shared with the learner.

Each prompt is read once by each mind that reads it differently, many prompts in one forward without padding, and what
they begin with alike once for all of them; keys and values go to the slots of all rollouts that begin so. Then a token
is decoded for each slot a turn. Finished rollouts leave their slots and waiting ones enter, so that products stay wide.
A token is the inverse of the cumulative distribution at a uniform number that belongs to that rollout and position
alone: the batch decides how fast a rollout is written, and never what it says. Every slot has room for the longest
rollout of its cache, so rollouts are written in waves of similar length where memory is short, and one long prompt does
not narrow the rest. Where memory runs out, half as many slots go on, and prompts are read in half as large parts.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ttrl_pop import randomness
from ttrl_pop.config import SamplingConfig
from ttrl_pop.errors import DivergenceError, UsageError
from ttrl_pop.kernels.memory import is_exhausted, limit_bytes, transfer
from ttrl_pop.model.logprobs import logit_rows
from ttrl_pop.model.policy import Policy
from ttrl_pop.packing.budget import Budget, prefill_tokens
from ttrl_pop.packing.pack import Tree, pack
from ttrl_pop.sample.backend import Backend, Request, Weights
from ttrl_pop.sample.hf.cache import KeyValueCache, prefill
from ttrl_pop.sample.hf.decode import DecodeGraphs, DecodeStep, Recorder
from ttrl_pop.sample.hf.draw import draw
from ttrl_pop.sample.hf.options import HfOptions
from ttrl_pop.types import FinishReason, Mind, Rollout

ENTER = 0.25
"""Waiting rollouts enter when at least this share of the slots is free: reading prompts in larger parts is faster."""

CACHE_SHARE = 0.25
"""Share of memory that keys and values may take."""

CHECK_EVERY = {"cuda": 8, "mps": 4}
"""Tokens between two looks at what was written, by type of device, which a look stops; 1 on others. Tokens behind an
end are thrown away."""


def slots_in(memory: float, longest: int, bytes_per_token: int, most: int) -> int:
    """Slots of `longest` tokens that fit into `memory` bytes of keys and values: at least 1, and not more than
    `most`."""
    return max(1, min(most, int(memory / (longest * bytes_per_token))))


@dataclass(slots=True)
class Writing:
    """A rollout on its way."""

    index: int
    """Index of its request."""
    request: Request
    uniforms: Float[np.ndarray, "T"] = field(default_factory=lambda: np.empty(0))
    """Uniform numbers of its tokens, drawn when it enters."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: FinishReason | None = None
    """Why it is finished; None while it is not."""

    @property
    def length(self) -> int:
        """Tokens of prompt and completion, of which all but the last are in the cache."""
        return len(self.request.prompt_ids) + len(self.ids)


class HfBackend(Backend):
    """The loop over the policy's own network as an engine."""

    Options = HfOptions
    options: HfOptions

    def __init__(self, policy: Policy, sampling: SamplingConfig, options: HfOptions | None = None) -> None:
        """Write with the policy's own network.

        Raises:
            UsageError: an option asks for what the device has not.
        """
        super().__init__(policy, sampling, options)
        self.cache_tokens: int | None = None
        """Tokens whose keys and values fit beside all else, known once memory has run out."""
        self.prefill_tokens = prefill_tokens(sampling.prefill_tokens, policy.device)
        """Tokens of one forward that reads prompts, fewer once memory has run out."""
        self._recorder = Recorder()
        if self.options.graphs and policy.device.type != "cuda":
            raise UsageError(f"backend_options.graphs takes a CUDA GPU, got {policy.device.type}; leave it out")

    def rollouts(self, requests: Sequence[Request], weights: Weights = "policy") -> Iterator[tuple[int, Rollout]]:
        if len({request.mind is None for request in requests}) > 1:
            raise ValueError("one call of rollouts takes requests with a mind or without, not both")
        with self.policy.as_base() if weights == "base" else nullcontext():
            yield from self._write_all(self._trees([Writing(i, request) for i, request in enumerate(requests)]))

    @property
    def records(self) -> bool:
        """Whether decode steps are recorded."""
        return self.policy.device.type == "cuda" if self.options.graphs is None else self.options.graphs

    def limits(self) -> dict[str, int]:
        if self.cache_tokens is None:
            return {}
        return {"cache_tokens": self.cache_tokens, "prefill_tokens": self.prefill_tokens}

    def restore_limits(self, limits: Mapping[str, int]) -> None:
        self.cache_tokens = limits.get("cache_tokens", self.cache_tokens)
        self.prefill_tokens = limits.get("prefill_tokens", self.prefill_tokens)

    def _write_all(self, waiting: deque[list[Writing]]) -> Iterator[tuple[int, Rollout]]:
        """Write all that waits, wave by wave; yield what is finished."""
        while waiting:
            wave, slots, longest = self._wave(waiting)
            try:
                yield from self._write(wave, slots, longest)
            except (RuntimeError, MemoryError) as error:
                if slots == 1 or not is_exhausted(error):
                    raise
                self.cache_tokens = slots // 2 * longest
                self.prefill_tokens = max(1, self.prefill_tokens // 2)
                waiting.extendleft(reversed(wave))

    def _wave(self, waiting: deque[list[Writing]]) -> tuple[deque[list[Writing]], int, int]:
        """Take the trees that are written next in one cache, and say how many slots of how many tokens it has: trees go
        together unless the longer ones would leave the shorter ones less than half of the slots that they can fill."""
        memory = CACHE_SHARE * limit_bytes(self.policy.device)
        wave: deque[list[Writing]] = deque()
        count = slots = widest = longest = 0
        while waiting:
            length = len(waiting[0][0].request.prompt_ids) + self.sampling.max_new_tokens
            together = min(self._fitting(length, memory), count + len(waiting[0]))
            if 2 * together < widest:
                break
            slots, widest, longest = together, max(widest, together), length
            count += len(waiting[0])
            wave.append(waiting.popleft())
        return wave, slots, longest

    def _fitting(self, longest: int, memory: float) -> int:
        """Rollouts of up to `longest` tokens that are written together: as many as asked for and as fit into `memory`
        bytes of keys and values."""
        room = slots_in(memory, longest, self.policy.cache_bytes_per_token, self.sampling.max_rows)
        return room if self.cache_tokens is None else max(1, min(room, self.cache_tokens // longest))

    def _trees(self, writings: Sequence[Writing]) -> deque[list[Writing]]:
        """Rollouts by the prompt that they share, short prompts first: rows of nearly equal length waste little
        attention, and the order of requests keeps the rollouts of a problem together."""
        trees: dict[tuple[object, ...], list[Writing]] = {}
        for writing in writings:
            trees.setdefault((writing.request.prompt_ids, self.reader(writing.request)), []).append(writing)
        return deque(sorted(trees.values(), key=lambda tree: (len(tree[0].request.prompt_ids), tree[0].index)))

    def _write(self, waiting: deque[list[Writing]], slots: int, longest: int) -> Iterator[tuple[int, Rollout]]:
        """Write all of a wave, in `slots` slots of `longest` tokens; yield what is finished. After a failure what was
        under way waits again."""
        cache = KeyValueCache(slots, longest)
        graphs = None
        if self.records:
            minds = (w.request.mind for w in chain(*waiting) if w.request.mind is not None)
            self._recorder.begin(is_asked_for=bool(self.options.graphs))
            graphs = DecodeGraphs(self._recorder, self.policy, cache, [*dict.fromkeys(minds)], self._draw_all)
        self.meter.under_way = 0
        active: list[Writing] = []
        entering: deque[list[Writing]] = deque()
        try:
            while waiting or entering or active:
                entering = entering or self._entering(waiting, slots - len(active), slots)
                if entering:
                    trees = self._forward(entering)
                    active += (rows := [writing for tree in trees for writing in tree])
                    tokens, logprobs = self._read(trees, cache, len(active) - len(rows))
                    self._extend(rows, tokens, logprobs)
                else:
                    self._extend(active, *self._decode(active, cache, graphs))
                finished = [
                    (w.index, self.rollout(w.request, w.ids, w.logprobs, w.reason, self.policy.version))
                    for w in active
                    if w.reason is not None
                ]
                # They leave only once nothing of this can fail, and before the caller sees them.
                active = self._close_gaps(active, cache)
                self.meter.under_way = sum(len(writing.ids) for writing in active)
                yield from finished
        except (RuntimeError, MemoryError):
            begun = [*active, *chain(*entering)]
            waiting.extendleft(reversed(self._trees([Writing(w.index, w.request) for w in begun])))
            raise

    def _entering(self, waiting: deque[list[Writing]], free: int, slots: int) -> deque[list[Writing]]:
        """Take the trees whose prompts are read now, those of one reader together; none where it is better to go on
        decoding."""
        if not waiting:
            return deque()
        # A tree is read once if it enters whole: that is worth some empty slots.
        if free < slots and free < max(ENTER * slots, min(len(waiting[0]), slots / 2)):
            return deque()
        if len(waiting[0]) > free:
            tree = waiting.popleft()
            waiting.extendleft([tree[free:], tree[:free]])
        taken: dict[Mind | None, list[list[Writing]]] = {}
        while waiting and len(waiting[0]) <= free:
            tree = waiting.popleft()
            taken.setdefault(self.reader(tree[0].request), []).append(tree)
            free -= len(tree)
        return deque(chain(*taken.values()))

    def _forward(self, entering: deque[list[Writing]]) -> list[list[Writing]]:
        """Take the trees whose prompts are read in one forward."""
        budget = Budget(self.prefill_tokens, (tree[0].request.prompt_ids for tree in entering))
        trees: list[list[Writing]] = []
        while entering:
            request = entering[0][0].request
            prompt = request.prompt_ids, self.reader(request)
            if trees and not budget.fits(*prompt):
                break
            budget.take(*prompt)
            trees.append(entering.popleft())
        return trees

    @torch.no_grad()
    def _read(
        self, trees: Sequence[Sequence[Writing]], cache: KeyValueCache, first: int
    ) -> tuple[Int[Tensor, "B 1"], Float[Tensor, "B 1"]]:
        """Read the prompts of `trees` into the slots from `first` on, and draw the first token of each rollout."""
        prompts = [tree[0].request for tree in trees]
        packed = pack([Tree(request.prompt_ids, self.reader(request)) for request in prompts], self.policy.device)
        slots = []
        for tree in trees:
            slots.append(range(first, first + len(tree)))
            first += len(tree)
        hidden_ND = self.policy.hidden(prefill(packed, cache, slots))
        rows = [writing for tree in trees for writing in tree]
        for writing in rows:
            writing.uniforms = randomness.stream(*writing.request.stream_key).random(self.sampling.max_new_tokens)
        # One row of hidden states for each tree, and which of them each rollout goes on from.
        last_MD = hidden_ND[transfer([pieces[-1][-1] for pieces in packed.stems], torch.long, self.policy.device)]
        trees_B = [number for number, tree in enumerate(trees) for _ in tree]
        tokens_B, logprobs_B = self._draw(last_MD, trees_B, self._uniforms(rows, 1)[:, 0])
        return tokens_B[:, None], logprobs_B[:, None]

    @torch.no_grad()
    def _decode(
        self, active: Sequence[Writing], cache: KeyValueCache, graphs: DecodeGraphs | None
    ) -> tuple[Int[Tensor, "B T"], Float[Tensor, "B T"]]:
        """Write some more tokens of each active rollout, one in each slot."""
        policy, limit, count = self.policy, self.sampling.max_new_tokens, len(active)
        turns = min(CHECK_EVERY.get(policy.device.type, 1), max(limit - len(writing.ids) for writing in active))
        lengths = [writing.length for writing in active]
        columns = min(max(lengths) + turns - 1, cache.longest)
        minds = [writing.request.mind for writing in active if writing.request.mind is not None]
        if graphs is None:
            even = turns == 1 and min(lengths) == columns
            step = DecodeStep(policy, cache, [*dict.fromkeys(minds)], self._draw_all, count, columns, even)
        else:
            step = graphs.step(count, columns)
        known = {mind: place for place, mind in enumerate(step.minds_M)}
        step.load(
            tokens=[writing.ids[-1] for writing in active],
            positions=[length - 1 for length in lengths],
            ends=[len(writing.request.prompt_ids) + limit - 2 for writing in active],
            minds=[known[mind] for mind in minds] or [0] * count,
        )
        uniforms_BT = self._uniforms(active, turns)
        tokens, logprobs = [], []
        for turn in range(turns):
            step.uniforms_B[:count] = uniforms_BT[:, turn]
            step()
            tokens.append(step.tokens_B[:count].clone())
            logprobs.append(step.logprobs_B[:count].clone())
        return torch.stack(tokens, dim=1), torch.stack(logprobs, dim=1)

    def _draw_all(
        self, hidden_BD: Float[Tensor, "B D"], uniforms_B: Float[Tensor, "B"]
    ) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
        return self._draw(hidden_BD, range(len(hidden_BD)), uniforms_B)

    def _draw(
        self, hidden_MD: Float[Tensor, "M D"], row_B: Sequence[int], uniforms_B: Float[Tensor, "B"]
    ) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
        """A token for each rollout from the hidden state in its row; `row_B` ascends."""
        drawn, held = [], logit_rows(self.policy.network)
        for start in range(0, len(row_B), held):
            rows = row_B[start : start + held]
            logits_RV = self.policy.logits(hidden_MD[rows[0] : rows[-1] + 1])
            if len(logits_RV) < len(rows):
                logits_RV = logits_RV[[row - rows[0] for row in rows]]
            uniforms_R = uniforms_B[start : start + held]
            drawn.append(draw(logits_RV, uniforms_R, self.sampling.temperature, self.sampling.top_p))
        tokens, logprobs = zip(*drawn, strict=True)
        return torch.cat(tokens), torch.cat(logprobs)

    def _uniforms(self, rows: Sequence[Writing], count: int) -> Float[Tensor, "B T"]:
        """Uniform numbers of the next `count` tokens of each row; behind the last, any."""
        last = self.sampling.max_new_tokens - 1
        drawn = [w.uniforms[np.minimum(np.arange(len(w.ids), len(w.ids) + count), last)] for w in rows]
        weight = next(self.policy.network.parameters())
        return transfer(np.stack(drawn), torch.promote_types(weight.dtype, torch.float32), weight.device)

    def _extend(
        self, rows: Sequence[Writing], tokens_BT: Int[Tensor, "B T"], logprobs_BT: Float[Tensor, "B T"]
    ) -> None:
        """Append what was drawn, up to the end of each rollout.

        Raises:
            DivergenceError: a log-probability is not a number.
        """
        for writing, tokens, logprobs in zip(rows, tokens_BT.tolist(), logprobs_BT.tolist(), strict=True):
            for token, logprob in zip(tokens, logprobs, strict=True):
                if math.isnan(logprob):
                    raise DivergenceError(
                        "the model's logits are not finite; lower learn.lr or population.options.sigma"
                    )
                writing.ids.append(token)
                writing.logprobs.append(logprob)
                ended = self.ended(writing.ids)
                if ended or len(writing.ids) == self.sampling.max_new_tokens:
                    writing.reason = "stop" if ended else "length"
                    break

    def _close_gaps(self, active: list[Writing], cache: KeyValueCache) -> list[Writing]:
        """The rollouts that go on, in the first slots: the last ones move to the slots of finished ones."""
        kept = [writing for writing in active if writing.reason is None]
        gaps = [slot for slot, writing in enumerate(active[: len(kept)]) if writing.reason is not None]
        movers = [slot for slot in range(len(kept), len(active)) if active[slot].reason is None]
        if not gaps:
            return active[: len(kept)]
        cache.move(movers, gaps, max(active[slot].length for slot in movers))
        for mover, gap in zip(movers, gaps, strict=True):
            active[gap] = active[mover]
        return active[: len(kept)]
