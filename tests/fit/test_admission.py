"""A population that cannot act, or cannot be written about, is refused before it trains."""

import itertools
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


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        (None, "metrics must return a dict, got a NoneType"),
        ({"gain": 1.0}, "keys of metrics must begin with population/, got 'gain'"),
        ({1: 1.0}, "keys of metrics must begin with population/, got 1"),
        ({"population/gain": float("nan")}, "metrics must be finite, got nan for 'population/gain'"),
    ],
)
def test_figures_that_are_none_or_could_be_those_of_others_are_refused(figures: Any, message: str) -> None:
    class Figured(NoPopulation):
        def metrics(self) -> Any:
            return figures

    with pytest.raises(UsageError, match=f"^population Figured: {message}"):
        prepared(Figured(NoPopulation.Options()))


@pytest.mark.parametrize(
    ("spawned", "message"),
    [
        (lambda count: [Mind(n) for n in range(1, count)], r"must return (\d+) different minds, .* got \d+, \d+ of"),
        (lambda count: [Mind(7)] * count, "got 4, 1 of them different$"),
        (lambda count: [Mind(n) for n in range(count)], "got 4, 4 of them different, one of them MEAN"),
        (lambda count: list(range(count)), r"must return a tuple of ttrl_pop.Mind, got \[0, 1, 2, 3\]"),
        (lambda count: None, "must return a tuple of ttrl_pop.Mind, got None"),
        (lambda count: [Mind(next(NUMBERS)) for _ in range(count)], "must be a function of its arguments"),
    ],
)
def test_minds_that_cannot_be_told_apart_or_found_again_are_refused(spawned: Any, message: str) -> None:
    class Spawning(NoPopulation):
        def spawn(self, run_seed: int, step: int, count: int) -> Any:
            return spawned(count)

    with pytest.raises(UsageError, match=f"^population Spawning: spawn .*{message}"):
        prepared(Spawning(NoPopulation.Options()))


NUMBERS = itertools.count(1)


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ("sigma", "lacks must be None, 'scale' or 'fit', got 'sigma'"),
        ("scale", "lacks its scale, so it must define set_scale"),
    ],
)
def test_a_lack_that_nobody_can_fill_is_refused(lacking: str, message: str) -> None:
    class Lacking(NoPopulation):
        @property
        def lacks(self) -> Any:
            return lacking

    with pytest.raises(UsageError, match=f"^population Lacking:? {message}"):
        prepared(Lacking(NoPopulation.Options()))


def test_a_scale_is_looked_for_by_targets_that_options_must_have() -> None:
    class Scaled(NoPopulation):
        @property
        def lacks(self) -> Any:
            return "scale"

        def set_scale(self, sigma: float) -> None: ...

    with pytest.raises(UsageError, match="Scaled lacks its scale, so its Options must have target_kl and target_flips"):
        prepared(Scaled(NoPopulation.Options()))
