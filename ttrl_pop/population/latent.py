r"""Latent minds: a code of random bits, drawn once per mind, that enters a pretrained model at its middle layer.

    R = Σ_h (2 b_h − 1) W_h,   b_h ~ Bernoulli(1/2) a pure function of the mind's seed

The layer reads X + R in place of X, the hidden states that come in. Below it all minds are the base model. The same
code enters once more, by directions of its own, behind the last layer.

Departures from the Free Transformer (arXiv 2510.17558):
1. The model is a pretrained one and stays as it is. W alone is fitted, on what the base model itself writes
   (`ttrl_pop.fit.latent`), and learns on with the adapter.
2. A mind has one code for the whole sequence, its prompt included, and was fitted so. `level = "token"` is the paper's
   way: a new code for every token.
3. Codes become vectors by a sum over their bits, not by a table, so that the mean over all codes is zero: the mean mind
   is the base model.
4. R goes into the stream that all layers above read and add to, and what they add cannot undo what enters behind them.
   In the paper the keys and values of that one layer are all that it reaches, and the model learns to look there; a
   frozen one has not, and is steered less far (docs/METHOD.md 9.4).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ttrl_pop import randomness
from ttrl_pop.errors import UsageError
from ttrl_pop.population.base import MEAN, Lack, Population
from ttrl_pop.population.norm_noise import hidden_size
from ttrl_pop.population.options import LatentOptions
from ttrl_pop.types import Metrics, Mind

Reader = Callable[[Tensor], Tensor]
"""Hidden states (N, D) that come into the middle layer → the code of each token, as −1 and 1 (N, H)."""
Injection = Callable[[int, Tensor], Tensor]
"""One of `PLACES` and hidden states there (N, D) → what is added to them, R (N, D)."""

PLACES = MIDDLE, END = 0, 1
"""Where codes enter: before the middle layer, and behind the last one."""

STATES = "hidden_states"
"""Name that layers of transformers give to what comes into them."""


class Latent(Population):
    """Minds that differ by a code which the middle layer reads, and the norm before the LM head.

    Parameter: `directions` W [H, P, D] for codes of H bits and P places, in float32 or wider. Buffers: `directions0`,
    as they were fitted; `size_x`, the size of the hidden states at the middle layer, nan before the fit; `gap_bits`,
    what the fit's codes decide.
    """

    Options = LatentOptions
    options: LatentOptions
    directions: nn.Parameter
    directions0: Tensor
    size_x: Tensor
    gap_bits: Tensor

    def __init__(self, options: LatentOptions) -> None:
        super().__init__(options)
        self.split = 0
        """Index of the layer that codes enter at."""
        self.below: list[nn.Module] = []
        """The layers below that one; in a list, as they are no part of this module."""
        self._injection: Injection | None = None
        self._reader: Reader | None = None
        self._states: Tensor | None = None
        """What the layer reads in place of what comes in."""
        self._fit_seen = -1
        """Version of `size_x` when it was last looked at."""
        self._is_fitted = False
        self._table: tuple[object, Tensor] | None = None

    @property
    def lacks(self) -> Lack | None:
        # Asked for every forward, and a look at the buffer stops a GPU: looked at once for each value.
        if self._fit_seen != self.size_x._version:
            self._fit_seen = self.size_x._version
            self._is_fitted = bool(torch.isfinite(self.size_x))
        return None if self._is_fitted else "fit"

    @torch.no_grad()
    def set_fit(self, directions_HPD: Float[Tensor, "H P D"], size_x: float, gap_bits: float) -> None:
        """Begin from what was fitted."""
        self.directions0.copy_(directions_HPD)
        self.size_x.fill_(size_x)
        self.gap_bits.fill_(gap_bits)
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        self.directions.copy_(self.directions0)

    def attach(self, network: nn.Module) -> None:
        """Find the middle layer and the last one, and allocate the directions.

        Raises:
            UsageError: the network's layers are not to be found.
        """
        self.split, layers = middle_layer(network)
        self.below, layer = [*layers[: self.split]], layers[self.split]
        weight = next(network.parameters())
        made: dict[str, Any] = {
            "dtype": torch.promote_types(weight.dtype, torch.float32),
            "device": weight.device,
        }
        shape = self.options.bits, len(PLACES), hidden_size(network)
        self.directions = nn.Parameter(torch.zeros(shape, **made))
        self.register_buffer("directions0", torch.zeros(shape, **made))
        self.register_buffer("size_x", torch.tensor(torch.nan, **made))
        self.register_buffer("gap_bits", torch.tensor(torch.nan, **made))
        layer.register_forward_pre_hook(self._enter, with_kwargs=True)
        layers[-1].register_forward_hook(self._leave)

    def spawn(self, run_seed: int, step: int, count: int) -> tuple[Mind, ...]:
        """The `count` minds of a step, a pure function of its arguments. No two have one code until codes run out."""
        minds: list[Mind] = []
        taken: set[bytes] = set()
        number = 0
        while len(minds) < count:
            mind = Mind(randomness.seed("mind", run_seed, step, number))
            number += 1
            if self.options.level == "sequence":
                if len(taken) == 2**self.options.bits:
                    taken.clear()
                if (code := self.code(mind).tobytes()) in taken:
                    continue
                taken.add(code)
            minds.append(mind)
        return tuple(minds)

    def code(self, mind: Mind, length: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
        """A mind's code for each of `length` positions [L, H], as −1 and 1; zeros for the mean mind. A longer one
        begins with the shorter one."""
        shape = length, self.options.bits
        if mind == MEAN:
            return np.zeros(shape, np.float32)
        drawn = randomness.stream("latent", mind.seed).random(shape, dtype=np.float32)
        return np.where(drawn < 0.5, np.float32(1), np.float32(-1))

    @contextmanager
    def embody(
        self, minds_M: Sequence[Mind], mind_N: Int[Tensor, "N"], positions_N: Int[Tensor, "N"]
    ) -> Iterator[None]:
        outer = self._injection
        if self._reader is not None:
            self._injection = self._by_reader(self._reader)
        else:
            self._injection = self._by_code(tuple(minds_M), mind_N, positions_N)
        try:
            yield
        finally:
            self._injection = outer

    @contextmanager
    def encoding(self, reader: Reader, states_ND: Tensor | None = None) -> Iterator[None]:
        """While active, `reader` says what codes are in a forward with minds, whichever they are: for the fit, where an
        encoder reads them off the text.

        Args:
            states_ND: what the forward's tokens are known to have come to at the middle layer; the layers below are
                passed over then.
        """
        self._reader, self._states = reader, states_ND
        # A layer may have a forward of its own already, as one that is computed again in the backward pass.
        passed = [(layer, vars(layer).get("forward")) for layer in self.below if states_ND is not None]
        for layer, _ in passed:
            layer.forward = _pass_over
        try:
            yield
        finally:
            self._reader = self._states = None
            for layer, own in passed:
                if own is None:
                    del layer.forward
                else:
                    layer.forward = own

    def kl_to_prior(self) -> Float[Tensor, ""]:
        """Zero: codes are drawn from their prior, whatever is learned."""
        return self.directions.new_zeros(())

    def held(self) -> object:
        return self._table

    def metrics(self) -> Metrics:
        """`population/reach`: size of what codes add at the middle layer, as a share of what it is added to;
        `population/gap_bits`: bits of a completion that codes decided when they were fitted."""
        with torch.no_grad():
            # The signs of a code are independent and have mean zero: its square is the sum of the squares.
            size = (self.directions[:, MIDDLE].square().sum() / self.directions.shape[-1]).sqrt()
            return {"population/reach": float(size / self.size_x), "population/gap_bits": float(self.gap_bits)}

    def _by_reader(self, reader: Reader) -> Injection:
        signs_NH = self.directions.new_zeros(0, self.options.bits)

        def added(place: int, states_ND: Tensor) -> Tensor:
            nonlocal signs_NH
            if place == MIDDLE:
                signs_NH = reader(states_ND).to(self.directions.dtype)
            return signs_NH @ self.directions[:, place]

        return added

    def _by_code(self, minds_M: tuple[Mind, ...], mind_N: Tensor, positions_N: Tensor) -> Injection:
        if self.lacks:
            raise UsageError("population latent has not been fitted to the model; fit it first (ttrl_pop.fit.prepare)")
        if self.options.level == "sequence":
            length, row_N = 1, mind_N
        else:
            # A power of two: the table is made anew when a sequence has doubled, not for each of its tokens.
            length = 1 << int(positions_N.max()).bit_length()
            row_N = mind_N * length + positions_N
        table_PRD = self._vectors(minds_M, length)
        return lambda place, states_ND: table_PRD[place].index_select(0, row_N)

    def _vectors(self, minds_M: tuple[Mind, ...], length: int) -> Tensor:
        """R of each place, mind and position, [P, M · L, D]."""
        # In-place updates raise a tensor's version: vectors are computed once for each setting of the parameters.
        key = (minds_M, length, self.directions._version)
        if not torch.is_grad_enabled() and self._table is not None and self._table[0] == key:
            return self._table[1]
        codes = torch.from_numpy(np.concatenate([self.code(mind, length) for mind in minds_M]))
        codes = codes.to(self.directions.device, self.directions.dtype)
        vectors_PRD = codes @ self.directions.transpose(0, 1)
        if not torch.is_grad_enabled():
            self._table = (key, vectors_PRD)
        return vectors_PRD

    def _enter(self, layer: nn.Module, inputs: Any, named: Any) -> Any:
        """Before the middle layer: let it read X + R."""
        if self._injection is None:
            return None
        states = inputs[0] if inputs else named[STATES]
        if states.ndim != 3:
            raise UsageError(
                f"population latent needs layers that read one row of hidden states, {type(layer).__name__} reads "
                f"{tuple(states.shape)}. Use --population norm-noise"
            )
        if self._states is not None:
            states = self._states.view(states.shape)
        read = _sum(states, self._injection(MIDDLE, states.flatten(0, -2)))
        return ((read, *inputs[1:]), named) if inputs else (inputs, named | {STATES: read})

    def _leave(self, layer: nn.Module, inputs: Any, output: Any) -> Any:
        """Behind the last layer: let the norm before the LM head read X + R."""
        if self._injection is None:
            return output
        states = output if isinstance(output, Tensor) else output[0]
        read = _sum(states, self._injection(END, states.flatten(0, -2)))
        return read if isinstance(output, Tensor) else (read, *output[1:])


def _sum(states: Tensor, added_ND: Tensor) -> Tensor:
    # States of a narrow type take what is above their grid: they are the residual stream, which has no wider form.
    return (states.to(added_ND.dtype) + added_ND.view(states.shape)).to(states.dtype)


def _pass_over(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def middle_layer(network: nn.Module) -> tuple[int, nn.ModuleList]:
    """Index of the first layer of the upper half, and all layers.

    Raises:
        UsageError: there is no list of them.
    """
    config: Any = network.config
    count = int(config.get_text_config().num_hidden_layers)
    for module in network.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return count // 2, module
    raise UsageError(
        f"population latent needs one list of the {count} layers that config.json tells of; {type(network).__name__} "
        "has none. Use --population norm-noise"
    )
