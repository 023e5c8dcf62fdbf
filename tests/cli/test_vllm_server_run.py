"""Whole runs by `vllm-server`: in several processes, and with servers that die while it goes on."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli.test_ranks import Job, arguments, whole
from fake_vllm import FakeVllm
from fakes import norm_noise

from ttrl_pop.config import LoraConfig
from ttrl_pop.config_file import load_config
from ttrl_pop.model.load import load_model
from ttrl_pop.model.policy import Policy
from ttrl_pop.sample.vllm.selftest import TOKENS

START = Callable[..., Any]


@pytest.fixture
def servers(place: Path, tmp_path: Path) -> Iterator[list[FakeVllm]]:
    name = load_config(place / "c.toml", {}).model
    policies = [
        Policy(load_model(name, "cpu", "float32"), norm_noise(0.3), LoraConfig(rank=2), seed=0) for _ in range(2)
    ]
    started = [FakeVllm(policy, tmp_path / "policies") for policy in policies]
    yield started
    for server in started:
        server.stop()


def test_several_processes_and_a_dying_server_change_no_byte(
    servers: list[FakeVllm], place: Path, start: START, tmp_path: Path
) -> None:
    urls = [server.url for server in servers]
    settings = (
        *("backend=vllm-server", f"backend_options.folder={tmp_path / 'policies'}", f"backend_options.urls={urls}"),
        *("dtype=float32", "population.options.sigma=0.3"),
    )
    found, names = [], []
    for size, dies in ((1, False), (2, False), (1, True)):
        out = tmp_path / f"run-{size}-{dies}"
        proof = iter(range(30))
        if dies:
            # In the middle of a step: its self-test and some rollouts are behind it.
            servers[0].change = lambda answer, proof=proof: answer if next(proof, None) is not None else None
        job = Job(start, size, tmp_path / out.name[4:], *arguments(place, out, *settings))
        assert set(job.codes()) == {0}, job.said()
        found.append(whole(out))
        told = (out / "run.log").read_text()
        assert (f"{servers[0].url} does not answer" in told) == dies
        assert all(server.answered for server in servers)
        # Processes share the names of what they publish, so that a server changes adapters as rarely as for one.
        names.append(
            len({body["model"] for server in servers for body in server.asked if body["max_tokens"] != TOKENS})
        )
        for server in servers:
            server.asked.clear()
    assert sum(row["learn/groups_used"] for row in found[0]["metrics"]) > 4, "nothing was learned"
    for each in found[1:]:
        assert [name for name in found[0] if each[name] != found[0][name]] == []
    assert len(set(names)) == 1
    assert not list((tmp_path / "policies").iterdir())
