"""What a population lacks is found on the session's problems, before its minds are embodied."""

import pytest
from fakes import norm_noise, tiny_model, tiny_policy, tiny_session

from ttrl_pop.errors import UsageError
from ttrl_pop.fit.base_rollouts import base_rollouts, looked_at
from ttrl_pop.fit.prepare import prepare
from ttrl_pop.fit.sigma import MINDS, Calibration, calibrate, distance
from ttrl_pop.model.policy import Policy
from ttrl_pop.population.base import Lack, NoPopulation
from ttrl_pop.run.session import Session
from ttrl_pop.run.survey import survey


def unscaled(**targets: float) -> Session:
    return tiny_session(Policy(tiny_model(), norm_noise("auto", **targets)))


def calibrated(session: Session) -> Calibration:
    minds = session.policy.population.spawn(session.config.seed, 0, MINDS)
    rollouts = base_rollouts(session, looked_at(session.problems))
    return calibrate(session.policy, rollouts, minds, session.config.learn.token_budget)


def test_a_population_that_lacks_its_scale_gets_the_calibrated_one() -> None:
    session, told, phases = unscaled(target_kl=0.05, target_flips=0.2), [], []
    assert session.policy.population.lacks == "scale"
    found = prepare(session, told.append, lambda text, rollouts: phases.append((text, rollouts)))
    expected = calibrated(unscaled(target_kl=0.05, target_flips=0.2))
    assert found == {"sigma": expected.sigma, "kl": expected.kl, "flips": expected.flips}
    assert [line.split(" (")[0] for line in told] == [f"sigma = {expected.sigma:.4g}"]
    assert phases[0] == ("finding sigma: the base model answers", len(session.problems))
    assert phases[1:][expected.evaluations - 1] == (f"finding sigma: {expected.sigma:.2g}", 0)
    assert session.policy.population.lacks is None
    assert session.policy.population.metrics()["population/sigma"] == pytest.approx(expected.sigma)


def test_what_a_population_has_stays() -> None:
    told: list[str] = []
    for session in (tiny_session(), tiny_session(tiny_policy(population=NoPopulation(NoPopulation.Options())))):
        before = session.policy.population.metrics()
        assert prepare(session, told.append) == {}
        assert session.policy.population.metrics() == before
    assert told == []


def test_a_population_that_nothing_here_fits_is_refused() -> None:
    class Unfitted(NoPopulation):
        @property
        def lacks(self) -> Lack | None:
            return "fit"

    session = tiny_session(tiny_policy(population=Unfitted(Unfitted.Options())))
    with pytest.raises(UsageError, match="Unfitted must be fitted"):
        prepare(session, print)


def test_calibration_meets_its_targets_and_comes_close() -> None:
    session = unscaled(target_kl=0.05, target_flips=0.2)
    found = calibrated(session)
    assert found.kl <= 0.05
    assert found.flips <= 0.2
    assert found.evaluations <= 6
    assert max(found.kl / 0.05, found.flips / 0.2) > 0.5
    assert session.policy.population.metrics()["population/sigma"] == pytest.approx(found.sigma)
    assert calibrated(unscaled(target_kl=0.05, target_flips=0.2)) == found


def test_a_sigma_far_below_the_first_guess_is_found() -> None:
    found = calibrated(unscaled(target_kl=1e-8, target_flips=1.0))
    assert 0 < found.kl <= 1e-8
    assert found.evaluations <= 20


def test_targets_that_no_sigma_meets_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttrl_pop.fit.sigma.distance", lambda *_: (1.0, 1.0))
    with pytest.raises(UsageError, match="no sigma down to"):
        prepare(unscaled(), lambda line: None)


def test_distance_grows_with_sigma_and_is_zero_without() -> None:
    session = tiny_session(tiny_policy(warm=False))
    minds = session.policy.population.spawn(0, 0, 4)
    rollouts = [t.group.rollouts_G[0] for t in survey(session)]
    measured = []
    for sigma in (0.0, 0.01, 0.02, 0.3):
        session.policy.population.set_scale(sigma)
        measured.append(distance(session.policy, rollouts, minds, 4096))
    assert measured[0] == (0, 0)
    assert measured[2][0] / measured[1][0] == pytest.approx(4, rel=0.2), "the square law"
    assert measured[3][0] > measured[2][0]
    one_row = distance(session.policy, rollouts, minds, 1)
    assert one_row == pytest.approx(measured[3], rel=1e-9)
