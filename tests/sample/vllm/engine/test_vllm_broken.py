"""A hook that is broken on purpose is found out at the start or within one step."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fakes import PROBLEMS, tiny_session
from vllm_models import Models, changed, sampling, tight

from ttrl_pop import randomness
from ttrl_pop.config_file import validate
from ttrl_pop.errors import EngineError, SamplerMismatchError, StaleRolloutError
from ttrl_pop.learn.learner import Learner
from ttrl_pop.model.policy import Policy
from ttrl_pop.population.norm_noise import NormNoise
from ttrl_pop.run.session import Session
from ttrl_pop.sample.vllm.backend import VllmBackend
from ttrl_pop.sample.vllm.worker import norms, runner_v1
from ttrl_pop.types import Mind, Update

TOKENS = 6


def start(policy: Policy, **options: Any) -> VllmBackend:
    return VllmBackend(
        policy, sampling(max_new_tokens=TOKENS), validate(VllmBackend.Options, tight(**options), "tight")
    )


@pytest.fixture
def whole(models: Models) -> Iterator[VllmBackend]:
    """An engine that has passed its self-test."""
    backend = start(models.policy("llama", sigma=0.05))
    yield backend
    backend.close()


def session_on(backend: VllmBackend) -> Session:
    """A session with what the backend asks of the learner, at a rate at which one step changes much."""
    asked = {f"learn__{name}": value for name, value in backend.learner_defaults().items()}
    session = tiny_session(backend.policy, learn__lr=1e-2, sampling__max_new_tokens=TOKENS, **asked)
    return dataclasses.replace(session, backend=backend)


def step(session: Session, learner: Learner, number: int) -> Update:
    """One step of training, with rewards by hand so that every group has a signal."""
    minds = session.policy.population.spawn(0, number, 4)
    groups = session.sample(PROBLEMS[:3], minds, 1, number)
    tallies = [dataclasses.replace(session.tally(group), rewards_G=(0.0, 1.0, 2.0, 0.5), label="x") for group in groups]
    update = learner.learn(tallies, number)
    session.backend.refresh()
    return update


def test_nothing_is_found_where_nothing_is_broken(whole: VllmBackend) -> None:
    session = session_on(whole)
    assert session.config.learn.tis is True
    learner = Learner(whole.policy, session.config)
    for number in (1, 2, 3):
        update = step(session, learner, number)
        assert update.updates == 1
        assert update.logprob_gap is not None
        assert update.logprob_gap < 1e-4


def test_a_scheduler_that_is_not_hooked_is_found_at_the_start(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_v1, "install", lambda runner, minds: None)
    closed: list[VllmBackend] = []
    right = VllmBackend.close
    monkeypatch.setattr(VllmBackend, "close", lambda backend: [closed.append(backend), right(backend)])
    with pytest.raises(EngineError, match="whose mind it was not told"):
        start(models.policy("llama"))
    assert len(closed) == 1, "an engine that fails its test is ended"


def test_code_compiled_before_the_norms_had_minds_is_found_at_the_start(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a stale compile cache comes to: the norms of the model run without the offset.
    monkeypatch.setattr(norms, "minded", lambda kind: kind)
    with pytest.raises(EngineError, match=r"of one mind differ by .*minds do not act"):
        start(models.policy("llama"))


def test_the_compile_cache_has_another_key_for_other_minds(models: Models) -> None:
    from vllm.engine.arg_utils import EngineArgs

    def key(**settings: Any) -> str:
        config = EngineArgs(model=models.path("llama"), additional_config=settings, max_model_len=256)
        return str(config.create_engine_config().compute_hash())

    plain, ours = key(), {"version": "1", "slots": 4, "sites": ["model.norm"]}
    keys = [
        plain,
        *(key(ttrl_pop={**ours, **change}) for change in ({}, {"slots": 5}, {"sites": []}, {"version": "2"})),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[1] == key(ttrl_pop=ours)


def test_minds_of_a_wrong_seed_are_found_at_the_start(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    right = NormNoise.offsets
    monkeypatch.setattr(NormNoise, "offsets", lambda self, minds: right(self, [Mind(m.seed + 1) for m in minds]))
    with pytest.raises(EngineError, match="of one mind differ by"):
        start(models.policy("llama"))


def test_minds_in_each_others_slots_are_found_at_the_start(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    right = NormNoise.offsets
    monkeypatch.setattr(NormNoise, "offsets", lambda self, minds: right(self, minds).flip(1))
    with pytest.raises(EngineError, match="of one mind differ by"):
        start(models.policy("llama"))


def test_another_model_is_found_at_the_start(models: Models) -> None:
    policy = models.policy("llama")
    with torch.no_grad():
        policy.network.get_input_embeddings().weight.mul_(1.01)
    with pytest.raises(EngineError, match=r"without a mind differ by .* another model"):
        start(policy)


def test_a_cache_shared_by_minds_is_found_at_the_start(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    from ttrl_pop.sample.vllm import engine

    right = engine.TokensPrompt
    monkeypatch.setattr(engine, "TokensPrompt", lambda cache_salt, **rest: right(cache_salt="one for all", **rest))
    with pytest.raises(EngineError, match=r"of one mind|read by another"):
        start(models.policy("llama"))


def test_numbers_that_the_worker_did_not_take_are_found_at_once(whole: VllmBackend) -> None:
    worker = whole.engine.llm.model_executor.driver_worker.worker
    right = worker.mind_write
    worker.mind_write = lambda offsets, count: right(bytes(len(offsets)), count)
    with pytest.raises(EngineError, match="holds other minds than it was sent"):
        step(session_on(whole), Learner(whole.policy, session_on(whole).config), 1)


def test_minds_of_a_wrong_seed_are_found_within_a_step(whole: VllmBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_on(whole)
    right = NormNoise.offsets
    monkeypatch.setattr(NormNoise, "offsets", lambda self, minds: right(self, [Mind(m.seed + 1) for m in minds]))
    with pytest.raises(SamplerMismatchError, match="step 1: log-probabilities of sampler and learner differ by"):
        step(session, Learner(whole.policy, session.config), 1)


@pytest.mark.parametrize("missed", ["adapter", "minds"])
def test_a_missed_update_is_found_within_a_step(
    whole: VllmBackend, monkeypatch: pytest.MonkeyPatch, missed: str
) -> None:
    session = session_on(whole)
    learner = Learner(whole.policy, session.config)
    step(session, learner, 1)
    if missed == "adapter":
        monkeypatch.setattr(whole.engine, "load_adapter", lambda adapter: None)
    else:
        # Minds of the step, but of the population before its update.
        before = {name: value.clone() for name, value in whole.policy.population.state_dict().items()}
        changed(whole.policy, 5, 0.05)
        right = NormNoise.offsets

        def stale(self: NormNoise, minds: Any) -> torch.Tensor:
            now = {name: value.clone() for name, value in self.state_dict().items()}
            self.load_state_dict(before)
            offsets = right(self, minds)
            self.load_state_dict(now)
            return offsets

        monkeypatch.setattr(NormNoise, "offsets", stale)
    with pytest.raises(SamplerMismatchError, match="step 2"):
        step(session, learner, 2)


def test_an_engine_that_is_not_told_of_an_update_is_found_within_a_step(
    whole: VllmBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_on(whole)
    learner = Learner(whole.policy, session.config)
    step(session, learner, 1)
    monkeypatch.setattr(whole, "_take_over", lambda: None)
    with pytest.raises(StaleRolloutError, match="the backend missed a refresh"):
        step(session, learner, 2)


def test_a_request_from_elsewhere_has_no_mind_and_is_an_error(whole: VllmBackend) -> None:
    from vllm import SamplingParams

    whole.engine.llm.add_request("stranger", {"prompt_token_ids": [5, 6, 7]}, SamplingParams(max_tokens=2))
    with pytest.raises(ValueError, match="a request without a mind"):
        whole.engine.llm.step()


def test_seeds_of_tokens_are_those_of_the_stream(whole: VllmBackend) -> None:
    from ttrl_pop.sample.backend import Request

    seeds: list[int] = []
    right = whole.engine.write

    def noted(orders: Any, weights: Any) -> Any:
        seeds.extend(order.seed for order in orders)
        return right(orders, weights)

    whole.engine.write = noted  # type: ignore[method-assign]
    keys = [("token", 0, 1, "p", 3, s) for s in range(3)]
    list(whole.rollouts([Request((5, 6, 7), None, key) for key in keys]))
    assert seeds == [randomness.seed(*key) for key in keys]
