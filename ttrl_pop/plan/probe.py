"""How fast this machine is at a model's forwards, measured for two seconds on its first layers with made-up weights.

What is run is what runs later: decode steps on a cache, prompts packed into rows, micro-batches with their gradients.
Each is timed at growing sizes, until the largest that comes or until its share of the time is spent; a line through the
last two sizes tells the rest. Layers and what stands behind them are told apart: layers count as often as the whole
model has them, and tokens of the vocabulary as often as the whole vocabulary has them.

Simplifications:

1. The first layers stand for all of them, and the first tokens of a large vocabulary for all of it.
2. Weights of few layers lie warmer in the cache than those of all.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from ttrl_pop.config import Config
from ttrl_pop.model.forward import recompute_layers
from ttrl_pop.model.logprobs import selected_logprobs
from ttrl_pop.model.policy import Policy
from ttrl_pop.model.size import PolicySize
from ttrl_pop.packing.pack import Branch, Pack, Tree, pack
from ttrl_pop.plan.work import Forwards
from ttrl_pop.sample.hf.backend import HfBackend
from ttrl_pop.sample.hf.cache import Decode, KeyValueCache, prefill
from ttrl_pop.sample.hf.draw import draw

SECONDS = 2.0
"""Time that all measures take together, about."""

LAYERS = 2
"""Layers that are measured."""

SPREAD = 251
"""Different tokens of made-up completions, so that hardly two begin alike."""

REPEATS = 2
"""Times that a size is timed, the fastest of which counts: what else runs on the machine makes only slower."""

PATIENCE = 4
"""How many times longer than its share a measure may take by the clock, where others use the machine as well."""

GROWTH = 4
"""How many times larger the next size is."""


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds that grow with a count."""

    fixed: float
    each: float

    def at(self, count: float | int) -> float:
        """Seconds for so many."""
        return self.fixed + self.each * count

    def times(self, factor: float | int) -> "Line":
        return Line(self.fixed * factor, self.each * factor)

    def plus(self, other: "Line") -> "Line":
        return Line(self.fixed + other.fixed, self.each + other.each)


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of the whole model's forwards."""

    decode: Line
    """One more token of each of n rollouts."""
    read: Line
    """A forward over n prompt tokens."""
    draw: Line
    """Logits and tokens of n hidden states."""
    learn: Line | None
    """A micro-batch over n tokens, forward and backward, without what stands behind the layers; None: nothing
    learns."""
    score: Line | None
    """Log-probabilities of n tokens of a micro-batch with their gradients."""
    update: float
    """An optimizer step, and what has to be made anew behind it."""
    cache_bytes: int
    """Keys and values of a token."""
    kept_bytes: float
    """What one token of a micro-batch leaves for the backward pass."""


def measure_speed(
    policy: Policy,
    config: Config,
    forwards: Forwards,
    size: PolicySize,
    prompts: Sequence[tuple[int, ...]],
    slots: int,
    learns: bool,
    seconds: float = SECONDS,
) -> Speed:
    """Measure a policy of few layers as one of another size.

    Args:
        size: that of the whole policy.
        prompts: some that will be asked.
        slots: rollouts that will be written together.
        learns: whether micro-batches are measured too.
    """
    text = policy.network.config.get_text_config()
    factor, wider = size.layers / text.num_hidden_layers, size.vocabulary / text.vocab_size
    probe = _Probe(policy, config, prompts, forwards.logits)
    share = seconds / (6 if learns else 4)
    host = Line(0.0, probe.packing())
    draw = measured(probe.draw, slots, share, policy.device).times(wider)
    decode = measured(probe.decode, slots, share, policy.device)
    read = measured(probe.read, forwards.read, share, policy.device)
    learn = score = None
    update = kept = 0.0
    if learns:
        if config.learn.checkpointing:
            recompute_layers(policy.network)
        score = measured(probe.score, forwards.learn, share / 2, policy.device).times(wider)
        learn = measured(probe.learn, forwards.learn, share, policy.device).times(factor).plus(host)
        update = factor * probe.update()
        kept = factor * probe.kept_bytes()
    return Speed(
        decode=decode.times(factor).plus(draw).plus(Line(0.0, probe.ending())),
        read=read.times(factor).plus(host),
        draw=draw,
        learn=learn,
        score=score,
        update=update,
        cache_bytes=round(policy.cache_bytes_per_token * factor),
        kept_bytes=kept,
    )


def copying(size: int) -> float:
    """Seconds of a byte that is copied to memory that nobody has used yet, from a copy of `size` bytes."""
    values = torch.ones(size, dtype=torch.uint8)
    return _timed(values.clone, values.device) / size


def measured(
    make: Callable[[int], tuple[int, Callable[[], object]]], most: int, seconds: float | int, device: torch.device
) -> Line:
    """The line of a work's seconds over its size, from the last two sizes that the time sufficed for.

    Args:
        make: a size → the size that it came to, and the work, to be done again and again.
        most: the largest size that is asked for.
    """
    begun, worked = time.perf_counter(), time.process_time()
    size = max(1, most // GROWTH**2)
    points: list[tuple[int, float]] = []
    while True:
        count, work = make(size)
        # The first time prepares what later ones find.
        first = _timed(work, device)
        spent = min(_timed(work, device) for _ in range(REPEATS if first < seconds / REPEATS else 1))
        if not points or count > points[-1][0]:
            points.append((count, spent))
        # On a shared machine the clock goes on while others have the processor.
        elapsed, own = time.perf_counter() - begun, (time.process_time() - worked) / torch.get_num_threads()
        share = min(1.0, max(own / elapsed, 1 / PATIENCE))
        if size >= most or share * (elapsed + (1 + REPEATS) * GROWTH * spent) > seconds:
            return line_through(points)
        size = min(most, GROWTH * size)


def line_through(points: Sequence[tuple[int, float]]) -> Line:
    """The line through the last two points (count, seconds), neither part of which is negative; through the origin
    where there is one point."""
    (count, spent) = points[-1]
    if len(points) > 1:
        (before, less) = points[-2]
        each = max(0.0, (spent - less) / (count - before))
        if (fixed := spent - each * count) >= 0:
            return Line(fixed, each)
    return Line(0.0, spent / count)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Probe:
    """The works that are timed; those on layers leave out what stands behind them."""

    def __init__(self, policy: Policy, config: Config, prompts: Sequence[tuple[int, ...]], logits: int) -> None:
        self.policy = policy
        self.config = config
        known = policy.network.get_input_embeddings().weight.shape[0]
        # A small part of a vocabulary has not all the tokens of a prompt, but as many others.
        self.prompts = [tuple(token % known for token in prompt) for prompt in prompts]
        self.logits = logits
        self.minds = policy.population.spawn(config.seed, 0, config.population.minds)
        self.pairs = [(mind, prompt) for mind, prompt in product(self.minds, self.prompts)]
        """Who reads what, in the order in which an engine takes them."""

    def decode(self, rows: int) -> tuple[int, Callable[[], object]]:
        policy, device = self.policy, self.policy.device
        longest = max(map(len, self.prompts)) + self.config.sampling.max_new_tokens
        mean = sum(map(len, self.prompts)) / len(self.prompts)
        columns = min(longest, round(mean + self.config.sampling.max_new_tokens / 2))
        cache = KeyValueCache(rows, longest)
        positions_B = torch.full((rows,), columns - 1, dtype=torch.long, device=device)
        tokens_B = torch.arange(rows, device=device) % 7
        plan = Decode(cache, positions_B, columns, even=False)
        minds_M = self.minds[:rows]
        mind_B = torch.arange(rows, device=device) % len(minds_M)

        @torch.no_grad()
        def step() -> None:
            policy.hidden(Pack(tokens_B, positions_B, minds_M, mind_B, plan, (), ()))
            if step.fresh:  # type: ignore[attr-defined]
                # Memory that nobody has written is read from one page.
                for buffers in cache.layers.values():
                    for buffer in buffers:
                        buffer[:, :, :columns] = 0.01
                step.fresh = False  # type: ignore[attr-defined]

        step.fresh = True  # type: ignore[attr-defined]
        return rows, step

    def draw(self, rows: int) -> tuple[int, Callable[[], object]]:
        sampling = self.config.sampling
        hidden_BD, uniforms_B = self._hidden(rows), torch.full((rows,), 0.5, device=self.policy.device)
        wide = torch.promote_types(hidden_BD.dtype, torch.float32)

        @torch.no_grad()
        def work() -> None:
            for hidden, uniforms in zip(
                torch.split(hidden_BD, self.logits), torch.split(uniforms_B.to(wide), self.logits), strict=True
            ):
                draw(self.policy.logits(hidden), uniforms, sampling.temperature, sampling.top_p)

        return rows, work

    def read(self, tokens: int) -> tuple[int, Callable[[], object]]:
        trees = []
        taken = 0
        for mind, prompt in self.pairs:
            trees.append(Tree(prompt, self.policy.population.reader(mind)))
            taken += len(prompt)
            if taken >= tokens:
                break
        packed = self._packed(trees)
        longest = max(map(len, self.prompts)) + 1
        slots = [range(slot, slot + 1) for slot in range(len(trees))]

        @torch.no_grad()
        def work() -> None:
            self.policy.hidden(prefill(packed, KeyValueCache(len(trees), longest), slots))

        return len(packed.ids_N), work

    def score(self, states: int) -> tuple[int, Callable[[], object]]:
        hidden_SD = self._hidden(states).requires_grad_()
        states_K = torch.arange(states, device=self.policy.device)
        targets_K = states_K % 7

        def work() -> None:
            found = selected_logprobs(
                self.policy.network, hidden_SD, states_K, targets_K, self.config.sampling.temperature
            )
            torch.autograd.grad(found.sum(), hidden_SD)

        return states, work

    def learn(self, tokens: int) -> tuple[int, Callable[[], object]]:
        packed = self._packed(self._batch(tokens))

        def work() -> None:
            with ExitStack() as stay:
                hidden_ND = self.policy.hidden(packed, stay)
                torch.autograd.grad(hidden_ND.sum(), self._trained, allow_unused=True)
            if self.config.learn.kl:
                with torch.no_grad(), self.policy.as_base():
                    self.policy.hidden(packed)

        return len(packed.ids_N), work

    def update(self) -> float:
        """Seconds of an optimizer step of these layers, and of making anew what follows from the weights."""
        mind, prompt = self.pairs[0]
        # What is made anew is made for one token too.
        row = self._packed([Tree(prompt[:1], self.policy.population.reader(mind))])
        optimizer = torch.optim.AdamW(self._trained)

        @torch.no_grad()
        def forward() -> None:
            self.policy.hidden(row)

        def step() -> None:
            for parameter in self._trained:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            torch.autograd.graph.increment_version(self._trained)
            forward()

        forward()
        step()
        device = self.policy.device
        return max(0.0, min(_timed(step, device) for _ in range(2)) - _timed(forward, device))

    def kept_bytes(self) -> float:
        """Bytes that a token of a micro-batch leaves in these layers for the backward pass. What does not grow with
        the tokens, such as weights with their adapters in them, is kept for other reasons."""
        (few, small), (many, large) = map(self._kept, (8, 72))
        return max(0.0, (large - small) / (many - few))

    def ending(self) -> float:
        """Seconds of a look whether a rollout has ended."""
        backend = HfBackend(self.policy, self.config.sampling)
        ids = list(self.prompts[0][-8:])
        start = time.perf_counter()
        for _ in range(64):
            backend.ended(ids)
        return (time.perf_counter() - start) / 64

    def _kept(self, length: int) -> tuple[int, int]:
        """Tokens of a prompt with a completion of so many, and bytes of all that their forward keeps."""
        mind, prompt = self.pairs[0]
        branch = Branch((prompt * length)[:length], mind)
        packed = self._packed([Tree(prompt, self.policy.population.reader(mind), (branch,))])
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with ExitStack() as stay, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden_ND = self.policy.hidden(packed, stay)
        assert hidden_ND.requires_grad
        return len(packed.ids_N), sum(kept.values())

    def packing(self) -> float:
        """Seconds of the host for each token that it packs."""
        trees = self._batch(512)
        start = time.perf_counter()
        packed = self._packed(trees)
        return (time.perf_counter() - start) / len(packed.ids_N)

    def _batch(self, tokens: int) -> list[Tree]:
        """About so many tokens of rollouts."""
        population = self.policy.population
        length = max(1, self.config.sampling.max_new_tokens - 1)
        spread = min(SPREAD, self.policy.network.get_input_embeddings().weight.shape[0])
        trees: list[Tree] = []
        taken = 0
        for number, (mind, prompt) in enumerate(self.pairs):
            branches = tuple(
                Branch(tuple((number + 31 * sample + 7 * i) % spread for i in range(length)), mind)
                for sample in range(self.config.population.samples_per_mind)
            )
            trees.append(Tree(prompt, population.reader(mind), branches))
            taken += len(prompt) + length * len(branches)
            if taken >= tokens:
                break
        return trees

    def _packed(self, trees: Sequence[Tree]) -> Pack:
        return pack(trees, self.policy.device)

    def _hidden(self, rows: int) -> Tensor:
        weight = self.policy.network.get_output_embeddings().weight
        return torch.linspace(-1, 1, weight.shape[1], dtype=weight.dtype, device=weight.device).repeat(rows, 1)

    @property
    def _trained(self) -> list[nn.Parameter]:
        return [*self.policy.adapter_parameters().values(), *self.policy.population_parameters().values()]
