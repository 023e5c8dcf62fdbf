"""The regimes of the letters experiment: what a model is shown on its way."""

import numpy as np
import pytest

from ttrl_pop.letters import regimes, task
from ttrl_pop.letters.regimes import REGIMES, Regime


@pytest.mark.parametrize("regime", REGIMES, ids=lambda regime: f"{regime.kappa:g}")
def test_noise_comes_once_the_free_bits_have_fallen(regime: Regime, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[float] = []
    texts = task.texts

    def noted(count: int, random: np.random.Generator, noise_rate: float = task.NOISE_RATE) -> task.Tokens:
        found = texts(count, random, noise_rate)
        shown.append(float((found == task.NOISE).mean()))
        return found

    monkeypatch.setattr(task, "texts", noted)
    short = regime.after(20)
    models = [*regimes.train(short, 0)]
    assert [(model.encoder.place is not None, model.shape.lean) for model in models] == [
        (regime.places, regime.lean)
    ] * 20
    first = round(20 * regime.quiet)
    assert shown[:first] == [0.0] * first
    assert all(rate > 0.02 for rate in shown[first:]), "and all of it at once"
    assert len(shown) == 20
    if regime.quiet:
        assert short.free_bits(first + 1) == pytest.approx(regime.kappa)
        assert short.free_bits(first - 1) > regime.kappa


def test_free_bits_fall_by_a_constant_factor() -> None:
    regime = Regime(0.5, steps=100, first=8.0, hold=0.2, until=0.6)
    bits = [regime.free_bits(step) for step in (1, 20, 30, 40, 50, 60, 100)]
    assert bits == pytest.approx([8, 8, 4, 2, 1, 0.5, 0.5])
    assert Regime(2.0, steps=10).free_bits(1) == 2.0
