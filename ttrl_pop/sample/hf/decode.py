"""One more token of each rollout, in tensors that stay where they are.

On a GPU the host takes longer to ask for the many small operations of a step than the device to make them. A step
reads and writes nothing but tensors that it holds, so that a CUDA graph can record it once for a number of rows and
columns, and repeat it at one command (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ttrl_pop.errors import UsageError
from ttrl_pop.kernels.memory import is_exhausted, transfer
from ttrl_pop.kernels.norms import has_kernels
from ttrl_pop.model.policy import Policy
from ttrl_pop.packing.pack import Pack
from ttrl_pop.sample.hf.cache import Decode, KeyValueCache
from ttrl_pop.types import Mind

COLUMNS = 256
"""Columns of a graph are rounded up to a multiple of this, where attention masks those behind a row's position: it
serves as many tokens, and masks half as many on average. To record one takes as long as some forty replays."""

Draw = Callable[[Float[Tensor, "B D"], Float[Tensor, "B"]], tuple[Int[Tensor, "B"], Float[Tensor, "B"]]]
"""Hidden states and uniform numbers → tokens and their log-probabilities."""


class DecodeStep:
    """One more token of each of B rollouts, which lie in the first B slots of a cache.

    Before the first call `load` what they have come to, before each call fill `uniforms_B`; after it read `tokens_B`
    and `logprobs_B`. The next call goes on from there.
    """

    def __init__(
        self,
        policy: Policy,
        cache: KeyValueCache,
        minds_M: Sequence[Mind],
        draw: Draw,
        rows: int,
        columns: int,
        even: bool = False,
    ) -> None:
        """
        Args:
            minds_M: the minds that rollouts may have; none where they have none.
            rows: rollouts, B.
            columns: so many columns of the cache hold all tokens.
            even: whether every rollout sees all of them, which can be so for one call alone.
        """
        self.policy = policy
        self.cache = cache
        self.minds_M = tuple(minds_M)
        self.draw = draw
        self.columns = columns
        self.even = even
        weight = next(policy.network.parameters())
        wide = torch.promote_types(weight.dtype, torch.float32)
        self._integers = torch.zeros(4, rows, dtype=torch.long, device=policy.device)
        self.tokens_B, self.positions_B, self.ends_B, self.mind_B = self._integers.unbind(0)
        self.uniforms_B = torch.zeros(rows, dtype=wide, device=policy.device)
        self.logprobs_B = torch.zeros(rows, dtype=wide, device=policy.device)

    def load(self, tokens: Sequence[int], positions: Sequence[int], ends: Sequence[int], minds: Sequence[int]) -> None:
        """Set, for the first rows, the last token, its position, the position that may not be passed, and the mind
        among `minds_M`. Rows behind them are unused: they write to slots that nobody owns."""
        unused = [0] * (self._integers.shape[1] - len(tokens))
        values = [[*given, *unused] for given in (tokens, positions, ends, minds)]
        self._integers.copy_(transfer(values, torch.long, self.policy.device))

    def __call__(self) -> None:
        plan = Decode(self.cache, self.positions_B, self.columns, self.even)
        packed = Pack(self.tokens_B, self.positions_B, self.minds_M or None, self.mind_B, plan, (), ())
        tokens_B, logprobs_B = self.draw(self.policy.hidden(packed), self.uniforms_B)
        self.tokens_B.copy_(tokens_B)
        self.logprobs_B.copy_(logprobs_B)
        # Behind its last token a rollout stays where it is: the model may know no further positions.
        self.positions_B.copy_(torch.minimum(self.positions_B + 1, self.ends_B))


class Recorder:
    """A maker of records, one of which runs at a time: they share the memory for what passes between operations."""

    _pool: Any = None
    _is_able = True
    _is_asked_for = False

    def begin(self, is_asked_for: bool) -> None:
        """Let the records to come share no memory with those before, which are gone.

        Args:
            is_asked_for: whether a step that cannot be recorded is an error.
        """
        self._pool = None
        self._is_asked_for = is_asked_for

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """A function that repeats the operations that `step` asks a GPU for, on the same memory; where it cannot be
        recorded, as where it must look at a result to go on, `step` itself. `step` is not run.

        Raises:
            UsageError: it cannot be recorded, and that was asked for.
        """
        if not self._is_able:
            return step
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                step()
        except RuntimeError as error:
            # Left as it failed, torch would go on with the stream on which it recorded.
            torch.cuda.set_stream(stream)
            if is_exhausted(error):
                raise
            if not self._is_asked_for:
                # The next one could be recorded no more than this one.
                self._is_able = False
                return step
            raise UsageError(
                "backend_options.graphs: this model's decode step cannot be recorded as a CUDA graph "
                f"({str(error).splitlines()[0]}); set it to false"
            ) from error
        self._pool = graph.pool()
        replay: Callable[[], None] = graph.replay
        return replay


class RecordedStep(DecodeStep):
    """A step whose second call and all after it repeat a record of the first."""

    def __init__(self, recorder: Recorder, *given: Any) -> None:
        super().__init__(*given)
        self._recorder = recorder
        self._replay: Callable[[], None] | None = None
        self._held: object = None

    def __call__(self) -> None:
        if self._replay is not None:
            self._replay()
            return
        super().__call__()
        self._replay = self._recorder.record(super().__call__)
        # A record reads what its operations read: all of it must live as long.
        self._held = self.policy.population.held()


class DecodeGraphs:
    """The steps of rollouts in one cache, recorded once for each number of rows and, where attention masks some, of
    columns, which are rounded up."""

    def __init__(
        self, recorder: Recorder, policy: Policy, cache: KeyValueCache, minds_M: Sequence[Mind], draw: Draw
    ) -> None:
        self._make = partial(RecordedStep, recorder, policy, cache, minds_M, draw)
        self._cache = cache
        # The kernel goes by each row's position, and leaves the columns behind it alone.
        self._goes_by_rows = has_kernels(next(policy.network.parameters()))
        self._steps: dict[tuple[int, int], RecordedStep] = {}

    def step(self, rows: int, columns: int) -> RecordedStep:
        """The step for at least `rows` rollouts and `columns` columns."""
        wide = self._cache.slots
        while (wide + 1) // 2 >= rows and wide > 1:
            wide = (wide + 1) // 2
        longest = self._cache.longest
        long = longest if self._goes_by_rows else min(-(-columns // COLUMNS) * COLUMNS, longest)
        if (wide, long) not in self._steps:
            self._steps[wide, long] = self._make(wide, long)
        return self._steps[wide, long]
