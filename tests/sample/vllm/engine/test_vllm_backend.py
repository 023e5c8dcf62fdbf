"""What vLLM writes under a mind is what the learner reads under it, whatever else is in the batch."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from fakes import PROBLEMS
from vllm_models import Models, changed, sampling, tight

from ttrl_pop.config_file import validate
from ttrl_pop.errors import UsageError
from ttrl_pop.model.logprobs import token_logprobs
from ttrl_pop.model.policy import Policy
from ttrl_pop.model.prompts import decode
from ttrl_pop.population.base import NoPopulation
from ttrl_pop.sample.backend import Request
from ttrl_pop.sample.hf.backend import HfBackend
from ttrl_pop.sample.vllm.backend import VllmBackend
from ttrl_pop.types import Mind, Rollout

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3", pytest.param("smollm2", marks=pytest.mark.slow))
SIGMA = {"smollm2": 0.005}
MINDS = (Mind(11), Mind(12), Mind(13))
ONE_FAMILY = pytest.mark.parametrize("backend", ["llama"], indirect=True)
"""For what no architecture changes."""


@pytest.fixture(scope="module", params=FAMILIES)
def backend(request: pytest.FixtureRequest, models: Models) -> Iterator[VllmBackend]:
    """Started, and hence self-tested, once for all tests of a family."""
    policy = models.policy(request.param, sigma=SIGMA.get(request.param, 0.1))
    made = VllmBackend(policy, sampling(), validate(VllmBackend.Options, tight(), "tight"))
    yield made
    made.close()


def prompts(policy: Policy) -> list[tuple[int, ...]]:
    """Prompts of very different lengths; the longest do not fit one forward of the tight engine."""
    texts = [str(problem.prompt) * n for problem, n in zip(PROBLEMS, (1, 2, 8), strict=False)]
    return [tuple(policy.model.tokenizer(text)["input_ids"])[:120] for text in texts]


def mixed(policy: Policy, minds: Sequence[Mind | None] = (None, *MINDS)) -> list[Request]:
    return [
        Request(ids, mind, ("mixed", p, m)) for p, ids in enumerate(prompts(policy)) for m, mind in enumerate(minds)
    ]


def written(backend: Any, requests: Sequence[Request], weights: str = "policy") -> list[Rollout]:
    results = dict(backend.rollouts(requests, weights))
    assert sorted(results) == list(range(len(requests)))
    return [results[i] for i in range(len(requests))]


def gap(policy: Policy, rollouts: Sequence[Rollout], minds: Sequence[Mind | None], temperature: float) -> float:
    """Mean |Δ log p| between the rollouts and the learner, a request at a time."""
    total, count = 0.0, 0
    for rollout, mind in zip(rollouts, minds, strict=True):
        with torch.no_grad():
            learner, mask = token_logprobs(policy, [rollout], None if mind is None else [mind], temperature)
        total += float((learner[mask] - torch.tensor(rollout.logprobs)).abs().sum())
        count += len(rollout.logprobs)
    return total / count


def agreement(one: Sequence[Rollout], other: Sequence[Rollout]) -> float:
    """Share of tokens that are equal, by position."""
    same = total = 0
    for a, b in zip(one, other, strict=True):
        total += max(len(a.completion_ids), len(b.completion_ids))
        same += sum(x == y for x, y in zip(a.completion_ids, b.completion_ids, strict=False))
    return same / total


def worker(backend: VllmBackend) -> Any:
    return backend.engine.llm.model_executor.driver_worker.worker


@contextmanager
def without_the_hook(backend: VllmBackend) -> Iterator[None]:
    """While active, the norms are those of plain vLLM."""
    modules = [m for m in worker(backend).model_runner.get_model().modules() if hasattr(m, "mind_table")]
    kinds = [type(module) for module in modules]
    for module in modules:
        module.__class__ = type(module).__mro__[1]
    try:
        yield
    finally:
        for module, kind in zip(modules, kinds, strict=True):
            module.__class__ = kind


def assert_same(one: Sequence[Rollout], other: Sequence[Rollout]) -> None:
    """Token for token, with log-probabilities equal to rounding."""
    for a, b in zip(one, other, strict=True):
        assert a.completion_ids == b.completion_ids
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
        assert (a.mind, a.text, a.finish_reason, a.policy_version) == (
            b.mind,
            b.text,
            b.finish_reason,
            b.policy_version,
        )


def assert_right(backend: VllmBackend) -> None:
    """Everything that must hold of an engine under the policy as it is now."""
    policy = backend.policy
    requests = mixed(policy)
    scheduler = backend.engine.llm.engine_core.engine_core.scheduler
    thrown_out: list[Any] = []
    preempt = scheduler._preempt_request
    scheduler._preempt_request = lambda *a, **k: thrown_out.append(a) or preempt(*a, **k)
    try:
        together = written(backend, requests)
    finally:
        del scheduler._preempt_request
    assert thrown_out, "the engine must have been too tight for all requests at once"
    assert max(len(r.prompt_ids) for r in requests) > 48, "and a prompt too long for one forward"
    alone = [written(backend, [request])[0] for request in requests]
    assert_same(together, alone)
    assert gap(policy, together, [r.mind for r in requests], 1.0) < 1e-3

    greedy, asked = sampling(temperature=0.0), mixed(policy, MINDS)
    ours = written(backend.with_sampling(greedy), asked)
    assert agreement(ours, written(HfBackend(policy, greedy), asked)) >= 0.99
    assert gap(policy, ours, [r.mind for r in asked], 0.0) < 1e-3


def test_the_engine_writes_what_the_learner_reads_before_and_after_an_update(backend: VllmBackend) -> None:
    assert_right(backend)
    before = written(backend, mixed(backend.policy))
    changed(backend.policy, 3, 0.002 if "smollm2" in str(backend.policy.model.source).lower() else 0.05)
    backend.refresh()
    assert_right(backend)
    after = written(backend, mixed(backend.policy))
    assert {r.policy_version for r in after} == {backend.policy.version} != {r.policy_version for r in before}
    # The old weights could not pass for the new ones.
    assert gap(backend.policy, before, [request.mind for request in mixed(backend.policy)], 1.0) > 1e-3


def test_no_mind_is_the_plain_model_to_the_bit(backend: VllmBackend) -> None:
    requests = mixed(backend.policy, (None,))
    # What was read before would change what is computed together, and so how it is rounded.
    backend.engine.forget()
    with_it = written(backend, requests)
    backend.engine.forget()
    with without_the_hook(backend):
        plain = written(backend, requests)
    assert [(r.completion_ids, r.logprobs) for r in with_it] == [(r.completion_ids, r.logprobs) for r in plain]


def test_minds_differ_and_repeat(backend: VllmBackend) -> None:
    ids = prompts(backend.policy)[0]
    requests = [Request(ids, mind, ("same",)) for mind in (None, *MINDS, MINDS[0])]
    rollouts = written(backend, requests)
    firsts = [r.logprobs[0] if r.completion_ids[0] == rollouts[0].completion_ids[0] else None for r in rollouts]
    assert len(set(firsts[:4])) > 1
    assert_same(rollouts[1:2], rollouts[4:])


def test_a_prompt_is_read_from_the_cache_of_its_own_mind_and_version_only(backend: VllmBackend) -> None:
    ids = prompts(backend.policy)[-1][:70]

    def cached(mind: Mind | None, weights: str = "policy") -> int:
        written(backend, [Request(ids, mind, ("cache",))], weights)
        return backend.cached_tokens

    backend.engine.forget()
    # One after another: the tight cache does not hold what all of them read.
    for mind in (MINDS[0], MINDS[1], None):
        assert cached(mind) == 0
        assert cached(mind) >= backend.engine.block
    assert cached(None, "base") == 0
    changed(backend.policy, 4, 1e-4)
    assert [cached(MINDS[0]), cached(None)] == [0, 0]


@ONE_FAMILY
def test_samples_of_a_mind_share_its_reading_of_the_prompt(backend: VllmBackend) -> None:
    backend.engine.forget()
    ids = prompts(backend.policy)[-1]
    rollouts = written(backend, [Request(ids, MINDS[0], ("sample", s)) for s in range(4)])
    assert backend.cached_tokens >= 3 * backend.engine.block
    assert len({r.completion_ids for r in rollouts}) > 1


@ONE_FAMILY
def test_the_base_model_writes_where_it_is_asked_for(backend: VllmBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = backend.policy
    requests = mixed(policy, (None,))
    greedy = sampling(temperature=0.0)
    ours = backend.with_sampling(greedy)
    adapted = written(ours, requests)
    monkeypatch.setattr(backend.engine, "load_adapter", None)
    monkeypatch.setattr(backend.engine, "forget", None)
    base = written(ours, requests, "base")
    assert_same(written(ours, requests), adapted)
    assert [r.logprobs for r in adapted] != [r.logprobs for r in base]
    assert agreement(base, written(HfBackend(policy, greedy), requests, "base")) >= 0.99
    with policy.as_base():
        assert gap(policy, base, [None] * len(base), 0.0) < 1e-3


@ONE_FAMILY
def test_minds_one_after_another_write_the_same(backend: VllmBackend) -> None:
    requests = mixed(backend.policy)
    batched = written(backend, requests)
    options = backend.options
    try:
        for changes in ({"minds": "serial"}, {"slots": 2}):
            backend.engine.options = backend.options = options.model_copy(update=changes)
            assert_same(written(backend, requests), batched)
            backend.engine.fill(None)
    finally:
        backend.engine.options = backend.options = options
        backend._minds = ()
    assert_same(written(backend, requests), batched)


@ONE_FAMILY
def test_temperature_is_in_the_log_probabilities(backend: VllmBackend) -> None:
    requests = mixed(backend.policy, MINDS)
    rollouts = written(backend.with_sampling(sampling(temperature=0.7)), requests)
    minds = [r.mind for r in requests]
    assert gap(backend.policy, rollouts, minds, 0.7) < 1e-3 < gap(backend.policy, rollouts, minds, 1.0)


@ONE_FAMILY
def test_completions_end_as_those_of_hf(backend: VllmBackend) -> None:
    policy = backend.policy
    stops = sampling(temperature=1.5, stop=("a", "1", "e."), max_new_tokens=12)
    rollouts = written(backend.with_sampling(stops), mixed(policy, MINDS))
    reasons = {r.finish_reason for r in rollouts}
    assert "stop" in reasons
    for rollout in rollouts:
        text = decode(policy.model.tokenizer, rollout.completion_ids)
        assert not any(stop in rollout.text for stop in stops.stop)
        assert text.startswith(rollout.text)
        assert len(rollout.logprobs) == len(rollout.completion_ids) <= 12
        by_eos = rollout.completion_ids[-1] in policy.model.eos_ids
        assert (by_eos or rollout.text != text) == (rollout.finish_reason == "stop")
        assert rollout.finish_reason == "stop" or len(rollout.completion_ids) == 12
        earlier = decode(policy.model.tokenizer, rollout.completion_ids[:-1])
        assert not any(stop in earlier for stop in stops.stop), "it must end at the first token that completes a stop"


@ONE_FAMILY
def test_rollouts_come_as_they_finish_and_may_be_left(backend: VllmBackend) -> None:
    requests = mixed(backend.policy)
    whole = written(backend, requests)
    some = backend.rollouts(requests)
    index, first = next(some)
    some.close()
    assert not backend.engine.llm.has_unfinished_requests()
    assert_same([first], [whole[index]])
    assert_same(written(backend, requests), whole)


@ONE_FAMILY
def test_what_is_too_long_is_refused(backend: VllmBackend) -> None:
    request = dataclasses.replace(mixed(backend.policy)[0], prompt_ids=(5,) * 250)
    with pytest.raises(UsageError, match=r"room for 256; raise backend_options.max_model_len"):
        written(backend, [request])


@ONE_FAMILY
def test_after_waking_the_minds_are_written_anew(backend: VllmBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM has no sleep on a CPU: what it does to the tables there is done here by hand."""
    requests = mixed(backend.policy)
    before = written(backend, requests)
    slept: list[int] = []

    def sleep(level: int) -> None:
        slept.append(level)
        worker(backend).minds.table.fill_(1.0)

    monkeypatch.setattr(backend.engine, "sleeps", True)
    monkeypatch.setattr(backend.engine.llm, "sleep", sleep)
    monkeypatch.setattr(backend.engine.llm, "wake_up", lambda: None)
    assert_same(written(backend, requests), before)
    assert slept == [1]
    assert backend.engine.asleep
    assert_same(written(backend, requests), before)
    assert slept == [1, 1]
    backend.engine.asleep = False


def test_without_a_population_all_share_their_prompts(models: Models) -> None:
    policy = models.policy("llama", NoPopulation(NoPopulation.Options()))
    made = VllmBackend(policy, sampling(), validate(VllmBackend.Options, tight(), "tight"))
    ids = prompts(policy)[-1]
    rollouts = written(made, [Request(ids, mind, ("none", mind.seed)) for mind in MINDS])
    assert made.cached_tokens >= 2 * made.engine.block
    assert gap(policy, rollouts, MINDS, 1.0) < 1e-3
    made.close()


def test_what_vllm_says_goes_to_stderr_and_is_little() -> None:
    script = (
        "import ttrl_pop.sample.vllm.engine; from vllm.logger import DEFAULT_LOGGING_CONFIG as config; "
        "handler = config['handlers']['vllm']; print(handler['stream'], handler['level'])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_LOGGING")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ext://sys.stderr", "ERROR"]


def test_what_a_cpu_or_the_policy_does_not_allow_is_refused(models: Models) -> None:
    policy = models.policy("llama")

    def start(**options: object) -> None:
        VllmBackend(policy, sampling(), validate(VllmBackend.Options, tight(**options), "tight"))

    with pytest.raises(UsageError, match="no sleep mode on a CPU"):
        start(sleep=True)
    with pytest.raises(UsageError, match="own_process must be true with tensor_parallel"):
        start(tensor_parallel=2, own_process=False)
    with pytest.raises(UsageError, match=r"backend vllm refuses model .*max_model_len"):
        start(max_model_len=100_000)


def test_in_bfloat16_the_engine_writes_what_the_learner_reads(models: Models) -> None:
    """Both round norm and offset once: what one of them lost would be another mind than the other's."""
    policy = models.policy("llama", sigma=0.1, dtype="bfloat16")
    made = VllmBackend(policy, sampling(), validate(VllmBackend.Options, tight(), "tight"))
    try:
        asked = mixed(policy, MINDS)
        rollouts = written(made, asked)
    finally:
        made.close()
    minds = [request.mind for request in asked]
    near = gap(policy, rollouts, minds, 1.0)
    assert near < 0.03
    # Of another mind they are not.
    assert gap(policy, rollouts, [Mind(99)] * len(rollouts), 1.0) > 5 * near
