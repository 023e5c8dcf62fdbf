"""A step of training on a device: gradients, the optimizer, memory that runs out, and a run that goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.commands import ttrl
from fakes import PROBLEMS, gradients, norm_noise, save_tiny, tallies_of, tiny_policy, tiny_session
from safetensors.torch import load_file

from ttrl_pop.config import SamplingConfig
from ttrl_pop.learn.learner import Learner
from ttrl_pop.run.session import Session
from ttrl_pop.sample.backend import Request
from ttrl_pop.sample.hf.backend import HfBackend
from ttrl_pop.types import Mind

WIDTH = 64
CLOSE = {torch.float32: 1e-3, torch.bfloat16: 0.15}
"""Largest distance of a gradient from the right one, over its size."""


def session_of(dtype: torch.dtype, device: str, **settings: Any) -> Session:
    return tiny_session(tiny_policy(dtype=dtype, width=WIDTH, device=device), learn__max_grad_norm=1e9, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def test_gradients_are_those_of_float64_on_the_cpu(dtype: torch.dtype, device: str) -> None:
    session, right = session_of(dtype, device), session_of(torch.float64, "cpu")
    # Of one seed, but numbers are drawn in the type that they have.
    for own, other in (
        (right.policy.network, session.policy.network),
        (right.policy.population, session.policy.population),
    ):
        own.load_state_dict({name: value.double().cpu() for name, value in other.state_dict().items()})
    tallies = tallies_of(session)
    found, expected = gradients(session, tallies), gradients(right, tallies)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        gap = float((found[name].double().cpu() - gradient).norm() / gradient.norm())
        assert gap <= CLOSE[dtype], name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def test_under_replay_the_learner_reads_what_the_sampler_wrote(dtype: torch.dtype, device: str) -> None:
    session = session_of(dtype, device)
    update = Learner(session.policy, session.config).learn(tallies_of(session), 1)
    assert update.updates == 1
    assert update.logprob_gap is not None
    assert update.logprob_gap < (1e-5 if dtype == torch.float32 else 0.05)


def test_an_update_is_adam_s_on_the_cpu(device: str) -> None:
    session, other = session_of(torch.float32, device), session_of(torch.float32, "cpu")
    other.policy.network.load_state_dict({n: t.cpu() for n, t in session.policy.network.state_dict().items()})
    ours, theirs = Learner(session.policy, session.config), Learner(other.policy, other.config)
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        for name, parameter in ours.trained.by_name.items():
            gradient = torch.randn(parameter.shape, generator=draw)
            parameter.grad, theirs.trained.by_name[name].grad = gradient.to(device), gradient
        ours.optimizer.step()
        theirs.optimizer.step()
    for name, parameter in ours.trained.by_name.items():
        torch.testing.assert_close(
            parameter.detach().cpu(), theirs.trained.by_name[name].detach(), rtol=1e-5, atol=1e-6
        )


@pytest.mark.usefixtures("on_cuda")
def test_where_memory_runs_out_the_learner_halves_its_parts(device: str) -> None:
    settings = {"learn__token_budget": 2**20, "sampling__max_new_tokens": 200, "population__minds": 64}
    session = session_of(torch.float32, device, **settings)
    tallies = tallies_of(session)
    whole = within(1.0, lambda: gradients(session, tallies))
    peak = torch.cuda.max_memory_allocated()
    learner: list[Learner] = []
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved()
    parts = within((held + 0.5 * (peak - held)) / total(), lambda: gradients(session, tallies, learners=learner))
    assert learner[0].token_budget < 2**20
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


@pytest.mark.usefixtures("on_cuda")
def test_where_memory_runs_out_fewer_rollouts_are_written_at_once(device: str) -> None:
    policy = tiny_policy(dtype=torch.float32, width=WIDTH, device=device)
    asked = [Request((5, 6, 7), Mind(mind), ("token", mind)) for mind in range(1, 1025)]
    sampling = SamplingConfig(max_new_tokens=200, max_rows=1024)
    whole = within(1.0, lambda: dict(HfBackend(policy, sampling).rollouts(asked)))
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved()
    backend = HfBackend(policy, sampling)
    parts = within((held + 0.5 * (peak - held)) / total(), lambda: dict(backend.rollouts(asked)))
    assert backend.limits()
    assert len(parts) == len(whole) == 1024
    same = [parts[index].completion_ids == rollout.completion_ids for index, rollout in whole.items()]
    assert sum(same) >= 0.98 * len(same)


def total() -> int:
    return int(torch.cuda.get_device_properties(0).total_memory)


def within(share: float, work: Any) -> Any:
    """What `work` gives where it may have this share of the GPU's memory."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    try:
        return work()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("exact", [False, True], ids=["close", "to-the-bit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_that_goes_on_ends_as_one_never_stopped(exact: bool, dtype: str, device: str, tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"id": p.id, "prompt": p.prompt}) + "\n" for p in PROBLEMS))
    config = tmp_path / "config.toml"
    config.write_text(
        f'model = "{save_tiny(tmp_path / "model", width=WIDTH)}"\ndevice = "{device}"\ndtype = "{dtype}"\n'
        f"deterministic = {str(exact).lower()}\nsteps = 4\nproblems_per_step = 4\n"
        '[problems]\nform = "raw"\n[population]\nminds = 4\n[population.options]\nsigma = 0.3\n'
        '[sampling]\nmax_new_tokens = 6\ntemperature = 2.0\n[vote]\ngrader = "exact"\n'
        "[learn]\nlr = 1e-3\nmask_truncated = false\n[learn.lora]\nrank = 2\n[checkpoint]\nkeep = 10\n"
    )
    whole, part = tmp_path / "whole", tmp_path / "part"
    ttrl("run", problems, "--config", config, "--out", whole)
    shutil.copytree(whole, part, symlinks=True)
    for step in (3, 4):
        shutil.rmtree(part / "checkpoints" / f"step_{step:04d}")
    ttrl("run", "--resume", part)
    for name in ("adapter/adapter_model.safetensors", "population.safetensors"):
        one, other = (load_file(run / "checkpoints" / "step_0004" / name) for run in (whole, part))
        for key, value in one.items():
            if exact:
                assert torch.equal(value, other[key]), key
            else:
                torch.testing.assert_close(value, other[key], rtol=0.1, atol=1e-2)


def test_minds_of_a_device_are_those_of_the_cpu(device: str) -> None:
    there = tiny_policy(dtype=torch.float32, width=WIDTH, device=device, population=norm_noise(0.3))
    here = tiny_policy(dtype=torch.float32, width=WIDTH, population=norm_noise(0.3))
    minds = [Mind(5), Mind(2**40)]
    torch.testing.assert_close(
        there.population.offsets(minds).cpu(), here.population.offsets(minds), rtol=1e-6, atol=1e-6
    )
