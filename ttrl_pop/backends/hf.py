"""Rollouts by our own batched loop over a transformers model, with weights shared with the learner.

Rows of one batch are prefilled (each distinct pair of mind and prompt once), then decoded together, a token for each
row a turn. A token is the inverse of the cumulative distribution at a uniform number that belongs to that rollout and
position alone: the batch decides how fast a rollout is written, and never what it says. Finished rows leave the batch.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from ttrl_pop import streams
from ttrl_pop.backends.base import Backend, Request
from ttrl_pop.errors import DivergenceError
from ttrl_pop.policy import at_temperature
from ttrl_pop.types import FinishReason, Mind, Rollout

BLOCK = 32
"""Columns by which a cache grows."""
LEAVE = 0.75
"""Finished rows are dropped when no more than this share of the batch is still writing: below it, the copy of the cache
costs less than the products saved."""
CDF_ROWS = 128
"""Rows whose distribution over the vocabulary is held at once."""


class HfBackend(Backend):
    @torch.no_grad()
    def rollouts(self, requests: Sequence[Request]) -> Iterator[tuple[int, Rollout]]:
        # Rows of nearly equal length need little padding; the index keeps the rollouts of a problem together.
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt_ids), i))
        for start in range(0, len(order), self.sampling.max_rows):
            chosen = order[start : start + self.sampling.max_rows]
            for i, rollout in self._batch([requests[i] for i in chosen]):
                yield chosen[i], rollout

    def _batch(self, requests: Sequence[Request]) -> Iterator[tuple[int, Rollout]]:
        policy, sampling = self.policy, self.sampling
        limit = sampling.max_new_tokens
        uniforms = torch.stack(
            [torch.from_numpy(streams.stream(*request.stream_key).random(limit)) for request in requests]
        )
        rows = list(range(len(requests)))
        longest = max(len(request.prompt_ids) for request in requests)
        padding = [longest - len(request.prompt_ids) for request in requests]
        ids: list[list[int]] = [[] for _ in requests]
        logprobs: list[list[float]] = [[] for _ in requests]
        finished: set[int] = set()

        cache, logits = self._prefill(requests, longest)
        for position in range(limit):
            tokens, chosen = draw(logits, uniforms[rows, position], sampling.temperature, sampling.top_p)
            for row, token, logprob in zip(rows, tokens.tolist(), chosen.tolist(), strict=True):
                if row in finished:
                    continue
                ids[row].append(token)
                logprobs[row].append(logprob)
                ended = self.ended(ids[row])
                if ended or position + 1 == limit:
                    finished.add(row)
                    reason: FinishReason = "stop" if ended else "length"
                    yield row, self.rollout(requests[row], ids[row], logprobs[row], reason, policy.version)
            writing = [place for place, row in enumerate(rows) if row not in finished]
            if not writing:
                return
            if len(writing) <= LEAVE * len(rows):
                kept = torch.tensor(writing, device=policy.device)
                cache.keep(kept)
                tokens = tokens[kept]
                rows = [rows[place] for place in writing]
            logits = policy.forward(
                tokens[:, None],
                [padding[row] for row in rows],
                self._minds([requests[row] for row in rows]),
                cache=cache,
                past=longest + position,
            )

    def _prefill(self, requests: Sequence[Request], longest: int) -> tuple["RowCache", Float[Tensor, "B V"]]:
        """Read every distinct (mind, prompt) once; returns the cache and the next-token logits of all rows."""
        place: dict[tuple[object, ...], int] = {}
        first: list[int] = []
        source = []
        for row, request in enumerate(requests):
            mind_key = None if request.mind is None else self.policy.population.prompt_key(request.mind)
            key = (mind_key, request.prompt_ids)
            if key not in place:
                place[key] = len(first)
                first.append(row)
            source.append(place[key])
        share = max(1, self.sampling.prefill_tokens // longest)
        cache = RowCache(len(first))
        logits = []
        for start in range(0, len(first), share):
            part = [requests[row] for row in first[start : start + share]]
            left = [longest - len(request.prompt_ids) for request in part]
            batch = [[0] * pad + list(r.prompt_ids) for pad, r in zip(left, part, strict=True)]
            cache.select(start, start + len(part))
            logits.append(
                self.policy.forward(
                    torch.tensor(batch, device=self.policy.device), left, self._minds(part), cache=cache
                )
            )
        cache.select(0, len(first))
        together = torch.cat(logits)
        if len(first) == len(requests):
            return cache, together
        spread = torch.tensor(source, device=self.policy.device)
        cache.keep(spread)
        return cache, together[spread]

    def _minds(self, requests: Sequence[Request]) -> list[Mind] | None:
        minds = [request.mind for request in requests if request.mind is not None]
        if not minds:
            return None
        if len(minds) < len(requests):
            raise ValueError("one call of rollouts takes requests with a mind or without, not both")
        return minds


def draw(
    logits_BV: Float[Tensor, "B V"], uniforms_B: Float[Tensor, "B"], temperature: float, top_p: float = 1.0
) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
    """Choose a token for each row, and its log-probability under the distribution that it was drawn from.

    Inverse transform sampling: the first token whose cumulative probability exceeds the row's uniform number in
    [0, 1). Temperature 0 takes the likeliest token and gives its log-probability at temperature 1. `top_p` keeps the
    likeliest tokens that together reach it (nucleus sampling, arXiv 1904.09751), in the renormalised distribution.
    """
    tokens, logprobs = [], []
    for start in range(0, len(logits_BV), CDF_ROWS):
        part = logits_BV[start : start + CDF_ROWS]
        wide = part.to(torch.promote_types(part.dtype, torch.float32))
        if bool(wide.isnan().any()):
            raise DivergenceError("the model's logits are not finite; lower learn.lr or population.options.sigma")
        logp = torch.log_softmax(at_temperature(wide, temperature), dim=-1)
        if temperature == 0:
            token = logp.argmax(-1)
        else:
            if top_p < 1:
                logp = _nucleus(logp, top_p)
            cdf = logp.exp().cumsum_(-1)
            total = cdf[:, -1:]
            u = uniforms_B[start : start + CDF_ROWS].to(cdf.device, cdf.dtype)[:, None]
            # Strictly below the total, so that rounding cannot select a token of probability zero at the end.
            point = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))
            token = torch.searchsorted(cdf, point, right=True)[:, 0]
        tokens.append(token)
        logprobs.append(logp.gather(-1, token[:, None])[:, 0])
    return torch.cat(tokens), torch.cat(logprobs)


def _nucleus(logp_BV: Tensor, top_p: float) -> Tensor:
    ordered, index = logp_BV.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    kept = torch.zeros_like(before, dtype=torch.bool).scatter(-1, index, before < top_p)
    return torch.log_softmax(logp_BV.masked_fill(~kept, -torch.inf), dim=-1)


class RowLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, [rows, heads, columns, width], in buffers that grow by blocks instead of being
    concatenated anew for every token, and written row range by row range during prefill."""

    keys: Tensor
    values: Tensor

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.window = slice(0, rows)
        self.length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        end = self.length + key_states.shape[2]
        self._reserve(key_states, value_states, end)
        self.keys[self.window, :, self.length : end] = key_states
        self.values[self.window, :, self.length : end] = value_states
        self.length = end
        return self.keys[self.window, :, :end], self.values[self.window, :, :end]

    def select(self, start: int, stop: int) -> None:
        """Write to and read from rows start..stop. A proper part of the rows begins with an empty sequence."""
        whole = (start, stop) == (0, self.rows)
        if not whole:
            self.length = 0
        self.window = slice(start, stop)

    def keep(self, rows: Tensor) -> None:
        """Make `rows` (repetitions allowed) the rows of the cache."""
        self.keys, self.values = self.keys[rows], self.values[rows]
        self.rows = len(rows)
        self.window = slice(0, self.rows)

    def get_seq_length(self) -> int:
        return self.length

    def _reserve(self, keys: Tensor, values: Tensor, end: int) -> None:
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self.keys, self.values = (x.new_empty(self.rows, x.shape[1], 0, x.shape[3]) for x in (keys, values))
        capacity = self.keys.shape[2]
        if end <= capacity:
            return
        wanted = -(-end // BLOCK) * BLOCK
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(self.rows, old.shape[1], wanted, old.shape[3])
            new[:, :, :capacity] = old
            setattr(self, name, new)


class RowCache(Cache):  # type: ignore[misc]
    """A transformers cache of `rows` rows whose rows can be written in parts, repeated and dropped."""

    def __init__(self, rows: int) -> None:
        super().__init__(layers=[])
        self.row_count = rows
        self.window = (0, rows)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        while len(self.layers) <= layer_idx:
            layer = RowLayer(self.row_count)
            layer.select(*self.window)
            self.layers.append(layer)
        states: tuple[Tensor, Tensor] = self.layers[layer_idx].update(key_states, value_states)
        return states

    def select(self, start: int, stop: int) -> None:
        self.window = (start, stop)
        for layer in self.layers:
            layer.select(start, stop)

    def keep(self, rows: Tensor) -> None:
        for layer in self.layers:
            layer.keep(rows)
        self.row_count = len(rows)
        self.window = (0, self.row_count)
