"""The backend vllm-server against servers that are real but for their engine."""

import gc
import http.client
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_vllm import LONGEST, FakeVllm
from fakes import norm_noise, tiny_model

from ttrl_pop.config import LoraConfig, SamplingConfig
from ttrl_pop.errors import EngineError, UsageError
from ttrl_pop.model.policy import Policy
from ttrl_pop.population.base import NoPopulation, Population
from ttrl_pop.sample.backend import Request
from ttrl_pop.sample.vllm_server.backend import VllmServerBackend
from ttrl_pop.sample.vllm_server.client import CONNECTING, Client, ServerDown
from ttrl_pop.sample.vllm_server.options import VllmServerOptions
from ttrl_pop.types import Mind, Rollout

PROMPTS = [(5, 6, 7), (8, 9, 10, 11)]
REQUESTS = [
    Request(prompt, mind, ("test", p, m, s))
    for p, prompt in enumerate(PROMPTS)
    for m, mind in enumerate((None, Mind(7), Mind(2**63 - 1)))
    for s in range(3)
]
SAMPLING = SamplingConfig(max_new_tokens=6, max_rows=4)


def made(population: Population | None = None, seed: int = 0) -> Policy:
    model = tiny_model(seed=seed, dtype=torch.float32)
    policy = Policy(model, population or norm_noise(0.3), LoraConfig(rank=2, alpha=4), seed=1)
    changed(policy)
    return policy


def changed(policy: Policy) -> None:
    """An update of everything that learns."""
    draw = torch.Generator().manual_seed(policy.version)
    with torch.no_grad():
        for parameter in [*policy.adapter_parameters().values(), *policy.population.parameters()]:
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    policy.version += 1


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[FakeVllm]]:
    started = [FakeVllm(made(), tmp_path / "policies") for _ in range(2)]
    yield started
    for server in started:
        server.stop()


def backend(servers: list[FakeVllm], policy: Policy, **sampling: Any) -> VllmServerBackend:
    options = VllmServerOptions(urls=tuple(s.url for s in servers), folder=str(servers[0].folder), timeout=20)
    return VllmServerBackend(policy, SAMPLING.model_copy(update=sampling), options)


def said(rollouts: dict[int, Rollout]) -> list[tuple[Any, ...]]:
    return [
        (i, r.mind, r.completion_ids, r.text, r.finish_reason, r.policy_version) for i, r in sorted(rollouts.items())
    ]


def test_servers_write_under_the_policy_as_it_is(servers: list[FakeVllm]) -> None:
    policy = made()
    engine = backend(servers, policy)
    seen = []
    for _ in range(3):
        written = dict(engine.rollouts(REQUESTS))
        assert sorted(written) == list(range(len(REQUESTS)))
        assert {rollout.policy_version for rollout in written.values()} == {policy.version}
        for request, rollout in zip(REQUESTS, (written[i] for i in range(len(REQUESTS))), strict=True):
            learner = _logprobs(policy, rollout, request.mind)
            torch.testing.assert_close(torch.tensor(rollout.logprobs), learner, atol=1e-4, rtol=0)
        seen.append(said(written))
        changed(policy)
        engine.refresh()
    assert seen[0] != seen[1] != seen[2]
    base = dict(engine.rollouts(REQUESTS, "base"))
    assert said(base) != seen[-1]
    assert all(server.answered for server in servers)
    # Of the policies that it wrote, the folder holds the last ones, and none in the end.
    assert len(list(servers[0].folder.iterdir())) == 2
    engine.close()
    assert not list(servers[0].folder.iterdir())


def _logprobs(policy: Policy, rollout: Rollout, mind: Mind | None) -> torch.Tensor:
    from ttrl_pop.sample.vllm.selftest import logprobs

    return logprobs(policy, [rollout], mind)


def test_another_run_of_the_same_policy_writes_the_same_and_takes_nothing_away(servers: list[FakeVllm]) -> None:
    first, second = (backend(servers, made()) for _ in range(2))
    whole = said(dict(first.rollouts(REQUESTS)))
    assert said(dict(second.rollouts(REQUESTS))) == whole
    # Requests of the first have its policy's name already when the second ends.
    go_on = threading.Event()
    servers[0].hold = servers[1].hold = go_on.wait
    running = first.rollouts(REQUESTS)
    threading.Timer(0.3, lambda: (second.close(), go_on.set())).start()
    assert said(dict(running)) == whole
    first.close()
    assert not list(servers[0].folder.iterdir())


def test_a_mind_that_reads_what_another_has_cached_is_refused(servers: list[FakeVllm]) -> None:
    own = servers[1]._written

    def written(body: dict[str, Any]) -> dict[str, Any]:
        answer = own(body)
        known = body["prompt"] in [each["prompt"] for each in servers[1].asked[:-1]]
        return {**answer, "usage": {"prompt_tokens_details": {"cached_tokens": 4 * known}}}

    servers[1]._written = written  # type: ignore[method-assign]
    with pytest.raises(
        EngineError, match=r"4 cached tokens of one mind were read by another; start it with --no-enable"
    ):
        backend(servers, made())


def test_requests_go_to_whoever_has_least_to_do(servers: list[FakeVllm]) -> None:
    engine = backend(servers, made())
    before = [server.answered for server in servers]
    rest = threading.Event()
    servers[0].hold = rest.wait
    written = []
    for answer in engine.rollouts(REQUESTS):
        written.append(answer)
        # One server has all that it takes at a time, the other has written all else.
        if len(written) == len(REQUESTS) - SAMPLING.max_rows:
            rest.set()
    assert len(written) == len(REQUESTS)
    assert servers[0].answered - before[0] == SAMPLING.max_rows


def test_a_completion_that_a_server_gave_up_is_written_by_another(servers: list[FakeVllm]) -> None:
    engine = backend(servers, made())
    whole = said(dict(engine.rollouts(REQUESTS)))

    def aborted(answer: dict[str, Any]) -> dict[str, Any]:
        (choice,) = answer["choices"]
        cut = {"token_ids": choice["token_ids"][:1], "logprobs": {"token_logprobs": [0.0]}, "finish_reason": "abort"}
        return {**answer, "choices": [cut]}

    servers[0].change = aborted
    with pytest.warns(UserWarning, match=f"{servers[0].url} ended a completion by 'abort'; its requests go to"):
        assert said(dict(engine.rollouts(REQUESTS))) == whole


def test_a_connection_that_is_made_after_all_was_given_up_asks_nothing(servers: list[FakeVllm]) -> None:
    client = Client(servers[0].url, 20.0)
    begun, go_on = threading.Event(), threading.Event()
    patience: list[float] = []
    own = http.client.HTTPConnection.connect

    def slow(self: http.client.HTTPConnection) -> None:
        patience.append(self.timeout)
        begun.set()
        go_on.wait()
        own(self)

    found: list[BaseException] = []

    def ask() -> None:
        try:
            client.complete({"model": "tiny", "prompt": [5]})
        except ServerDown as error:
            found.append(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http.client.HTTPConnection, "connect", slow)
        thread = threading.Thread(target=ask)
        thread.start()
        begun.wait()
        client.give_up()
        go_on.set()
        thread.join()
    assert "no longer asked" in str(found[0])
    assert patience == [CONNECTING]
    assert not servers[0].asked


@pytest.mark.parametrize("gives_up", [True, False])
def test_half_an_answer_is_none_and_leaves_nothing_open(gives_up: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = Client(f"http://127.0.0.1:{listening.getsockname()[1]}", 20.0)

        def serve() -> None:
            taken, _ = listening.accept()
            with taken:
                request = b""
                # What is left unread would make this end a reset one.
                while not request.endswith(b"}"):
                    request += taken.recv(2**16)
                taken.sendall(b'HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\n{"choices"')
                if gives_up:
                    time.sleep(0.2)
                    client.give_up()

        thread = threading.Thread(target=serve)
        thread.start()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            with pytest.raises(ServerDown, match="broke off in the middle of an answer"):
                client.complete({"model": "tiny", "prompt": [5]})
            gc.collect()
        thread.join()
    assert [each for each in seen if each.category is ResourceWarning] == []


def test_an_answer_has_longer_than_a_connection(servers: list[FakeVllm], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = backend(servers, made())
    monkeypatch.setattr("ttrl_pop.sample.vllm_server.client.CONNECTING", 0.5)
    servers[0].hold = servers[1].hold = lambda: time.sleep(0.7)
    assert len(dict(engine.rollouts(REQUESTS[:2]))) == 2


def test_what_a_dead_server_leaves_is_written_by_the_others_as_it_would_have_been(servers: list[FakeVllm]) -> None:
    policy = made()
    engine = backend(servers, policy)
    whole = said(dict(engine.rollouts(REQUESTS)))
    left = iter(range(3))
    servers[0].change = lambda answer: answer if next(left, None) is not None else None
    with pytest.warns(UserWarning, match=f"{servers[0].url} does not answer .*; its requests go to the others"):
        assert said(dict(engine.rollouts(REQUESTS))) == whole
    servers[0].stop()
    count = servers[0].answered
    assert said(dict(engine.rollouts(REQUESTS))) == whole
    assert servers[0].answered == count
    servers[1].stop()
    with pytest.raises(EngineError, match=r"no server is left: .*go on with --resume"):
        dict(engine.rollouts(REQUESTS))


def test_a_server_that_is_back_is_proved_before_it_writes(servers: list[FakeVllm]) -> None:
    engine = backend(servers, made())
    servers[0].stop()
    with pytest.warns(UserWarning, match="its requests go to the others"):
        dict(engine.rollouts(REQUESTS))
    engine.refresh()
    assert [server.alive for server in engine.servers.servers] == [False, True]
    servers[0].start()
    engine.refresh()
    assert [server.alive for server in engine.servers.servers] == [True, True]
    servers[0].stop()
    with pytest.warns(UserWarning, match="its requests go to the others"):
        dict(engine.rollouts(REQUESTS))
    servers[0].policy = made(seed=1)
    servers[0].start()
    engine.refresh()
    assert [server.alive for server in engine.servers.servers] == [False, True]
    with pytest.warns(UserWarning, match="is back, but not taken .*the engine runs another model"):
        dict(engine.rollouts(REQUESTS))


@pytest.mark.parametrize("number", [0, 1])
def test_a_server_with_other_weights_is_refused_at_the_start(number: int, servers: list[FakeVllm]) -> None:
    servers[number].policy = made(seed=1)
    message = "self-test of backend vllm-server: .*runs another model; start it with the run's model"
    with pytest.raises(EngineError, match=f"{servers[number].url}: {message}"):
        backend(servers, made())
    assert not list(servers[0].folder.iterdir())


@pytest.mark.parametrize(
    ("family", "width", "lora", "message"),
    [
        ("llama", 8, None, "shifts norms 8 wide, those of this server's model are 16 wide"),
        ("gemma3", 16, None, "shifts '.*layernorm', which is no norm of this server's model"),
        ("llama", 8, LoraConfig(rank=2, alpha=4), "could not be loaded: .* is it vLLM of the run's model"),
    ],
)
def test_a_policy_of_another_model_is_the_clients_fault(
    family: str, width: int, lora: LoraConfig | None, message: str, servers: list[FakeVllm]
) -> None:
    model = tiny_model(family, dtype=torch.float32, width=width)
    with pytest.raises(EngineError, match=rf"refuses /v1/completions \(400\): .*{message}"):
        backend(servers, Policy(model, norm_noise(0.3), lora, seed=1))


def test_a_server_that_takes_no_adapters_is_told_how_to_start(servers: list[FakeVllm]) -> None:
    servers[0].no_adapters = True
    message = r"\(404\): The model `policy-.*VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, --enable-lora"
    with pytest.raises(EngineError, match=message):
        backend(servers, made())


@pytest.mark.parametrize("wrong", ["mind", "none"])
def test_a_server_with_other_minds_is_refused_at_the_start(wrong: str, servers: list[FakeVllm]) -> None:
    own = servers[1]._written

    def written(body: dict[str, Any]) -> dict[str, Any]:
        extra = body.pop("vllm_xargs", None)
        return own({**body, "vllm_xargs": {**extra, "mind": extra["mind"] ^ 2}} if extra and wrong == "mind" else body)

    servers[1]._written = written  # type: ignore[method-assign]
    with pytest.raises(
        EngineError, match=f"{servers[1].url}: self-test .*its minds do not act; start it with --additional-config"
    ):
        backend(servers, made())


def test_a_stale_policy_is_noticed_within_a_step(servers: list[FakeVllm]) -> None:
    """By the gap of log-probabilities, of which the learner allows as much as rounding makes."""
    policy = made()
    engine = backend(servers, policy)
    old = engine._publish()
    changed(policy)
    own = servers[0]._written

    def stale(body: dict[str, Any]) -> dict[str, Any]:
        if "vllm_xargs" in body:
            body = {**body, "vllm_xargs": {**body["vllm_xargs"], "population": old}}
        return own({**body, "model": old})

    servers[0]._written = stale  # type: ignore[method-assign]
    written = dict(engine.rollouts(REQUESTS))
    gaps = [
        float((_logprobs(policy, written[i], request.mind) - torch.tensor(written[i].logprobs)).abs().mean())
        for i, request in enumerate(REQUESTS)
    ]
    assert max(gaps) > engine.learner_defaults()["max_logprob_gap"]


def test_a_policy_that_a_server_does_not_find_is_an_error_at_once(servers: list[FakeVllm], tmp_path: Path) -> None:
    servers[0].folder = tmp_path / "elsewhere"
    with pytest.raises(EngineError, match=r"refuses /v1/completions \(400\): .*does the server see the folder"):
        backend(servers, made())


def test_closed_early_nothing_is_waited_for(servers: list[FakeVllm]) -> None:
    engine = backend(servers, made(), max_rows=2)
    go_on = threading.Event()
    servers[0].hold = servers[1].hold = go_on.wait
    written = engine.rollouts(REQUESTS)
    first = threading.Event()
    servers[1].hold = lambda: None if not first.is_set() and first.set() is None else go_on.wait()
    next(written)
    written.close()
    # Nobody was taken for dead, and what was under way is no more.
    assert all(server.alive and server.under_way == 0 for server in engine.servers.servers)
    go_on.set()
    assert len(dict(engine.rollouts(REQUESTS))) == len(REQUESTS)


def test_stop_strings_end_a_completion_where_the_learner_says(servers: list[FakeVllm]) -> None:
    policy = made()
    long = dict(backend(servers, policy).rollouts(REQUESTS))
    stop = next(rollout.text[1] for rollout in long.values() if len(rollout.text) > 2)
    engine = backend(servers, policy, stop=(stop,))
    # As a server that looks for stop strings later than the learner.
    for server in servers:
        own = server._written
        server._written = lambda body, own=own: own({**body, "stop": []})  # type: ignore[method-assign]
    written = dict(engine.rollouts(REQUESTS))
    assert any(rollout.finish_reason == "stop" and stop not in rollout.text for rollout in written.values())
    for index, rollout in written.items():
        whole = long[index]
        assert rollout.completion_ids == whole.completion_ids[: len(rollout.completion_ids)]
        assert stop not in rollout.text
        assert len(rollout.logprobs) == len(rollout.completion_ids)


def test_a_stop_string_that_is_a_special_token_is_one_of_the_ids_that_stop(servers: list[FakeVllm]) -> None:
    policy = made()
    long = dict(backend(servers, policy).rollouts(REQUESTS))
    stop = next(rollout.text[1] for rollout in long.values() if len(rollout.text) > 2)
    policy.model.tokenizer.add_special_tokens({"additional_special_tokens": [stop]})
    mark = policy.model.tokenizer.convert_tokens_to_ids(stop)
    written = dict(backend(servers, policy, stop=(stop,)).rollouts(REQUESTS))
    for server in servers:
        assert sorted(server.asked[-1]["stop_token_ids"]) == sorted({*policy.model.eos_ids, mark})
    for index, rollout in written.items():
        ids = long[index].completion_ids
        assert rollout.completion_ids == (ids[: ids.index(mark) + 1] if mark in ids else ids)
        assert (rollout.finish_reason == "stop") == (rollout.completion_ids[-1] in {*policy.model.eos_ids, mark})


def test_the_model_alone_needs_no_minds(servers: list[FakeVllm]) -> None:
    policy = made(NoPopulation(NoPopulation.Options()))
    for server in servers:
        server.policy = made(NoPopulation(NoPopulation.Options()))
    written = dict(backend(servers, policy).rollouts(REQUESTS))
    assert len(written) == len(REQUESTS)
    assert not any("vllm_xargs" in body for server in servers for body in server.asked)


def test_a_key_is_taken_from_the_environment(servers: list[FakeVllm], monkeypatch: pytest.MonkeyPatch) -> None:
    for server in servers:
        server.key = "secret"
    with pytest.raises(UsageError, match=r"refuses /v1/models \(401\): Unauthorized"):
        backend(servers, made())
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert backend(servers, made())


def test_what_cannot_be_asked_is_said(servers: list[FakeVllm]) -> None:
    with pytest.raises(UsageError, match=r"needs backend_options.urls, .* and backend_options.folder"):
        VllmServerBackend(made(), SAMPLING)
    engine = backend(servers, made())
    with pytest.raises(UsageError, match=f"may come to {LONGEST + 1} tokens"):
        next(engine.rollouts([Request((5,) * (LONGEST - 5), None, ("x",))]))
    with pytest.raises(UsageError, match=r'level "sequence" only'):
        backend(servers, made(norm_noise(0.3, level="token")))
    servers[1].stop()
    with pytest.raises(UsageError, match=r"does not answer .*; start it first"):
        backend(servers, made())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"urls": ("127.0.0.1:8000",)}, "named by its address"),
        ({"urls": ("http://",)}, "named by its address"),
        ({"urls": ("http://localhost:80O0",)}, "named by its address"),
        ({"urls": ("http://localhost:80000",)}, "named by its address"),
        ({"urls": ("http://[::1",)}, "named by its address"),
        ({"urls": ("http://:8000",)}, "named by its address"),
        ({"urls": ("http://me:key@localhost:8000",)}, "named by its address"),
        ({"urls": ("http://a:1", "http://a:1/")}, "named once"),
        ({"timeout": 0}, "greater than 0"),
    ],
)
def test_options_that_name_no_server_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VllmServerOptions(**given)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({}, "no tokens with their log-probabilities"),
        ({"choices": [{"token_ids": None, "logprobs": {"token_logprobs": []}, "finish_reason": "stop"}]}, "no tokens"),
        ({"choices": [{"token_ids": [5], "logprobs": None, "finish_reason": "stop"}]}, "no tokens"),
        (
            {"choices": [{"token_ids": [5], "logprobs": {"token_logprobs": []}, "finish_reason": "stop"}]},
            "1 tokens and 0",
        ),
    ],
)
def test_an_answer_that_is_none_is_an_error(answer: dict[str, Any], message: str, servers: list[FakeVllm]) -> None:
    engine = backend(servers, made())
    for server in servers:
        server.change = lambda _: answer
    with pytest.raises(EngineError, match=message):
        dict(engine.rollouts(REQUESTS))
