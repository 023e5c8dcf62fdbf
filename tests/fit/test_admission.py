"""A population that cannot act, or cannot be written about, is refused before it trains."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from fakes import norm_noise, tiny_policy, tiny_session
from jaxtyping import Float
from torch import Tensor, nn

from ttrl_pop.config import Section
from ttrl_pop.errors import UsageError
from ttrl_pop.fit.prepare import prepare
from ttrl_pop.population.base import NoPopulation, Population
from ttrl_pop.types import Metrics, Mind


class Gain(Population):
    """One gain for all minds, in the hook of one linear layer."""

    class Options(Section):
        place: str = "q_proj"
        late: bool = True
        start: float = 1.0

    def _hook(self, network: nn.Module) -> None:
        layer = next(m for n, m in network.named_modules() if n.endswith(self.options.place))
        layer.register_forward_hook(lambda module, inputs, output: output if self.off else output * self.gain)

    def attach(self, network: nn.Module) -> None:
        self.off = True
        self.gain = nn.Parameter(torch.tensor(self.options.start, dtype=next(network.parameters()).dtype))
        if not self.options.late:
            self._hook(network)

    def settle(self, network: nn.Module) -> None:
        if self.options.late:
            self._hook(network)

    def restart(self) -> None:
        return

    @contextmanager
    def embody(self, minds_M: Sequence[Mind], mind_N: Tensor, positions_N: Tensor) -> Iterator[None]:
        self.off = False
        yield
        self.off = True

    def kl_to_prior(self) -> Float[Tensor, ""]:
        return torch.zeros(())


def prepared(population: Population, family: str = "llama") -> None:
    session = tiny_session(tiny_policy(family, population=population))
    random = torch.random.get_rng_state()
    prepare(session, print)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(p.grad is None for p in session.policy.population_parameters().values())


def gain(**options: Any) -> Gain:
    return Gain(Gain.Options(**options))


def test_a_population_whose_hooks_never_run_is_refused() -> None:
    # Fast layers read weights by themselves: what an adapter has wrapped is not called.
    for place in ("q_proj", "up_proj", "down_proj", "act_fn"):
        prepared(gain(place=place))
    with pytest.raises(UsageError, match=r"^population Gain does not reach the model: no output depends on its"):
        prepared(gain(late=False))


def test_a_population_without_spread_or_without_parameters_reaches_as_far_as_it_should() -> None:
    prepared(gain(start=0.0))
    for family in ("llama", "gpt2"):
        prepared(norm_noise(0.0), family)
        prepared(norm_noise(0.3, scope="completion"), family)
    prepared(NoPopulation(NoPopulation.Options()))


def test_figures_that_no_file_can_hold_are_refused() -> None:
    class Figured(NoPopulation):
        def metrics(self) -> Metrics:
            return {"population/gain": torch.ones(())}  # type: ignore[dict-item]

    with pytest.raises(UsageError, match=r"Figured: metrics must be plain numbers .* a Tensor for 'population/gain'"):
        prepared(Figured(NoPopulation.Options()))
