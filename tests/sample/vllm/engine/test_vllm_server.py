"""The backend vllm-server with real servers of vLLM: what they write, and what becomes of it when one dies."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fakes import PROBLEMS, norm_noise, save_tiny
from vllm_models import WIDTH, Models, changed, sampling
from vllm_servers import Serving, environment, vllm_serve

from ttrl_pop.config import LoraConfig
from ttrl_pop.errors import EngineError
from ttrl_pop.model.load import load_model
from ttrl_pop.model.policy import Policy
from ttrl_pop.sample.backend import Request
from ttrl_pop.sample.vllm import policy_files
from ttrl_pop.sample.vllm.selftest import logprobs
from ttrl_pop.sample.vllm_server.backend import VllmServerBackend
from ttrl_pop.sample.vllm_server.options import VllmServerOptions
from ttrl_pop.types import Mind

LONG = tuple(3 + k % 40 for k in range(70))
# More minds than a server has rows.
REQUESTS = [Request((5, 6, 7 + p), Mind(2**62 + m), ("t", p, m)) for p in range(2) for m in range(10)]
REQUESTS += [Request((5, 6, 7), None, ("t", s)) for s in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def servers(models: Models, folder: Path) -> Iterator[list[Serving]]:
    started = [vllm_serve(models.path("llama"), folder / "policies", folder / f"{n}.log") for n in range(2)]
    try:
        yield [server.wait() for server in started]
    finally:
        for server in started:
            server.stop()


def options(servers: list[Serving], folder: Path) -> VllmServerOptions:
    return VllmServerOptions(urls=tuple(server.url for server in servers), folder=str(folder / "policies"))


def test_servers_write_what_the_learner_reads_before_and_after_an_update(
    servers: list[Serving], folder: Path, models: Models
) -> None:
    policy = models.policy("llama")
    engine = VllmServerBackend(policy, sampling(max_new_tokens=8), options(servers, folder))
    seen = []
    for _ in range(2):
        written = dict(engine.rollouts(REQUESTS))
        for index, request in enumerate(REQUESTS):
            own = torch.tensor(written[index].logprobs)
            assert float((logprobs(policy, [written[index]], request.mind) - own).abs().max()) < 1e-4
        seen.append([written[index].completion_ids for index in range(len(REQUESTS))])
        assert [written[index].completion_ids for index, _ in sorted(engine.rollouts(REQUESTS))] == seen[-1]
        changed(policy, 5, 0.05)
        engine.refresh()
    assert seen[0] != seen[1]
    base = dict(engine.rollouts(REQUESTS, "base"))
    with policy.as_base():
        for index, request in enumerate(REQUESTS):
            own = torch.tensor(base[index].logprobs)
            assert float((logprobs(policy, [base[index]], request.mind) - own).abs().max()) < 1e-4
    engine.close()


def test_a_prompt_is_read_from_the_cache_of_its_own_mind_and_policy_alone(
    servers: list[Serving], folder: Path, models: Models
) -> None:
    policy = models.policy("llama")
    names = []
    for _ in range(2):
        changed(policy, 6, 0.05)
        names.append(policy_files.publish(folder / "policies", policy.adapter, policy.population))
    cached = []
    for name, seed in ((0, 5), (0, 7), (1, 5), (0, 5), (1, 5), (0, None), (0, None)):
        body = {"model": models.path("llama"), "prompt": list(LONG), "max_tokens": 1}
        if seed is not None:
            body["vllm_xargs"] = {"mind": seed, "population": names[name]}
        status, row = servers[0].ask("/v1/completions", body)
        assert status == 200, row
        cached.append((row["usage"]["prompt_tokens_details"] or {}).get("cached_tokens", 0))
    assert cached == [0, 0, 0, 64, 64, 0, 64]


@pytest.mark.parametrize(
    ("xargs", "message"),
    [
        ({"mind": "seven", "population": "policy-" + "0" * 32}, "a mind is a seed"),
        ({"mind": -1, "population": "policy-" + "0" * 32}, "a mind is a seed"),
        ({"mind": 7}, "needs a population"),
        ({"mind": 7, "population": "../../etc"}, "a policy is named"),
        ({"mind": 7, "population": "policy-" + "0" * 32}, "does the server see the folder"),
        ({"population": "policy-" + "0" * 32}, "names a mind"),
    ],
)
def test_what_is_no_mind_is_refused_and_the_server_goes_on(
    xargs: dict[str, object], message: str, servers: list[Serving], models: Models
) -> None:
    body = {"model": models.path("llama"), "prompt": [5, 6], "max_tokens": 1}
    status, row = servers[0].ask("/v1/completions", {**body, "vllm_xargs": xargs})
    assert (status, message in json.dumps(row)) == (400, True), row
    assert servers[0].ask("/v1/completions", body)[0] == 200


def test_a_policy_that_would_end_the_engine_is_refused_and_the_server_goes_on(
    servers: list[Serving], folder: Path, models: Models, tmp_path: Path
) -> None:
    place = folder / "policies"
    policy = models.policy("llama")
    alone = policy_files.publish(place, policy.adapter, None)
    foreign = []
    for family, width in (("llama", WIDTH // 2), ("gemma3", WIDTH)):
        other = load_model(str(save_tiny(tmp_path / family, family, width=width)), "cpu", "float32")
        foreign.append(policy_files.publish(place, None, Policy(other, norm_noise(0.3), None, seed=1).population))
    body = {"model": models.path("llama"), "prompt": [5, 6], "max_tokens": 1}
    for name, message in (
        (alone, "has no population"),
        (foreign[0], "norms .* wide"),
        (foreign[1], "no norm of this server's model"),
    ):
        status, row = servers[0].ask("/v1/completions", {**body, "vllm_xargs": {"mind": 1, "population": name}})
        assert status == 400, row
        assert re.search(message, json.dumps(row)), row
    # One that the server has known, whose room another has taken.
    changed(policy, 7, 0.05)
    names = [alone, policy_files.publish(place, policy.adapter, None)]
    assert [servers[0].ask("/v1/completions", {**body, "model": name})[0] for name in names] == [200, 200]
    policy_files.withdraw(place, alone)
    status, row = servers[0].ask("/v1/completions", {**body, "model": alone})
    assert (status, "has been withdrawn" in json.dumps(row)) == (400, True), row
    assert servers[0].ask("/v1/completions", {**body, "model": names[1]})[0] == 200


def test_a_server_with_other_weights_is_refused(servers: list[Serving], folder: Path, tmp_path: Path) -> None:
    other = load_model(str(save_tiny(tmp_path / "other", "llama", seed=1, width=WIDTH)), "cpu", "float32")
    policy = Policy(other, norm_noise(0.3), LoraConfig(rank=8, alpha=16), seed=1)
    with pytest.raises(EngineError, match=f"{servers[0].url}: self-test .*the engine runs another model"):
        VllmServerBackend(policy, sampling(max_new_tokens=8), options(servers, folder))


TRAIN = (
    "run problems.jsonl --raw --model model --minds 24 --steps 2 --problems-per-step 6 --seed 3 --quiet "
    "--set vote.grader=exact --set sampling.max_new_tokens=64 --set sampling.max_rows=4 "
    "--set population.options.sigma=0.3 --set learn.lora.rank=8 --backend vllm-server"
)


def test_a_run_goes_on_when_a_server_is_killed_in_the_middle_of_a_step(
    servers: list[Serving], folder: Path, models: Models, tmp_path: Path
) -> None:
    problems = "".join(json.dumps({"id": p.id, "prompt": p.prompt}) + "\n" for p in PROBLEMS)
    (tmp_path / "problems.jsonl").write_text(problems)
    (tmp_path / "model").symlink_to(models.path("llama"))
    urls = json.dumps([server.url for server in servers])
    command = [sys.executable, "-m", "ttrl_pop", *TRAIN.split(), "--set", f"backend_options.urls={urls}"]
    command += ["--set", f"backend_options.folder={folder / 'policies'}"]
    texts = []
    for name in ("whole", "killed"):
        with subprocess.Popen(
            [*command, "--out", name], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE
        ) as run:
            if name == "killed":
                _until_busy(servers[1], run, tmp_path / name / "identity.json")
                servers[1].kill()
            _, err = run.communicate(timeout=300)
        assert run.returncode == 0, err.decode()
        texts.append((tmp_path / name / "answers.jsonl").read_text())
        assert len((tmp_path / name / "metrics.jsonl").read_text().splitlines()) == 2
    log = (tmp_path / "killed" / "run.log").read_text()
    assert f"{servers[1].url} " in log
    assert "its requests go to the others" in log
    labels = [[(row["id"], row["answer"]) for row in map(json.loads, text.splitlines())] for text in texts]
    assert labels[0] == labels[1]


def _until_busy(server: Serving, run: subprocess.Popen[bytes], begun: Path) -> None:
    """Until the server has answered some requests of a run that has begun, its self-test behind it."""
    before = None
    while run.poll() is None:
        answered = server.log.read_text().count("POST /v1/completions")
        if begun.exists():
            before = answered if before is None else before
            if answered > before + 4:
                return
        time.sleep(0.01)
    assert run.stderr is not None
    raise AssertionError(f"the run was over before the server was killed: {run.stderr.read().decode()}")
