"""What a population lacks is found on the session's problems, before its minds are embodied."""

import pytest
import torch
from fakes import logits_of, norm_noise, tiny_model, tiny_policy, tiny_session

from ttrl_pop.errors import UsageError
from ttrl_pop.fit.base_rollouts import base_rollouts, looked_at
from ttrl_pop.fit.prepare import prepare
from ttrl_pop.fit.sigma import MINDS, Calibration, calibrate, distance, read_by_base
from ttrl_pop.model.policy import Policy
from ttrl_pop.packing.budget import learner_tokens
from ttrl_pop.population.base import Lack, NoPopulation
from ttrl_pop.run.session import Session
from ttrl_pop.run.survey import survey


def unscaled(**targets: float) -> Session:
    return tiny_session(Policy(tiny_model(), norm_noise("auto", **targets)))


def calibrated(session: Session) -> Calibration:
    minds = session.policy.population.spawn(session.config.seed, 0, MINDS)
    rollouts = base_rollouts(session, looked_at(session.problems))
    return calibrate(session.policy, rollouts, minds, learner_tokens(None, session.policy.device))


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
        measured.append(distance(session.policy, read_by_base(session.policy, rollouts, 4096), minds))
    assert measured[0] == (0, 0)
    assert measured[2][0] / measured[1][0] == pytest.approx(4, rel=0.2), "the square law"
    assert measured[3][0] > measured[2][0]
    one_row = distance(session.policy, read_by_base(session.policy, rollouts, 1), minds)
    assert one_row == pytest.approx(measured[3], rel=1e-9)


@torch.no_grad()
def test_distance_is_the_kl_and_the_share_of_changes_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # Blocks that end inside a completion.
    monkeypatch.setattr("ttrl_pop.model.logprobs.LOGIT_ROWS", 7)
    session = tiny_session(tiny_policy(warm=False))
    policy = session.policy
    minds = policy.population.spawn(0, 0, 3)
    rollouts = [t.group.rollouts_G[0] for t in survey(session)]
    kl, changed, count = 0.0, 0, 0
    for rollout in rollouts:
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
        of_interest = slice(len(rollout.prompt_ids) - 1, -1)
        base, *others = (
            logits_of(policy, ids, None if mind is None else [mind])[0, of_interest].log_softmax(-1)
            for mind in (None, *minds)
        )
        for own in others:
            kl += float(torch.nn.functional.kl_div(own, base, log_target=True, reduction="sum"))
            changed += int((own.argmax(-1) != base.argmax(-1)).sum())
            count += len(own)
    found = distance(policy, read_by_base(policy, rollouts, 64), minds)
    assert found == pytest.approx((kl / count, changed / count), rel=1e-9)
    assert changed > 0


def test_the_base_model_is_read_once_however_many_sigmas_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    session = unscaled(target_kl=1e-6, target_flips=1.0)
    rollouts = base_rollouts(session, looked_at(session.problems))
    minds = session.policy.population.spawn(0, 0, MINDS)
    read: list[bool] = []
    hidden = session.policy.hidden
    monkeypatch.setattr(
        session.policy, "hidden", lambda packed: (read.append(packed.minds_M is None), hidden(packed))[1]
    )
    tried: list[float] = []
    calibrate(session.policy, rollouts, minds, 4096, tried.append)
    assert len(tried) > 1
    assert (read.count(True), read.count(False)) == (1, MINDS * len(tried))


def test_the_base_model_writes_no_more_than_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    long = tiny_session(sampling__max_new_tokens=30)
    whole = base_rollouts(long, long.problems)
    monkeypatch.setattr("ttrl_pop.fit.base_rollouts.LONGEST", 6)
    session = tiny_session(sampling__max_new_tokens=30)
    short = base_rollouts(session, session.problems)
    assert max(len(rollout.completion_ids) for rollout in whole) > 6
    assert [rollout.completion_ids for rollout in short] == [rollout.completion_ids[:6] for rollout in whole]
    assert session.backend.meter.tokens == sum(len(rollout.completion_ids) for rollout in short)
    assert session.backend.sampling.max_new_tokens == 30
