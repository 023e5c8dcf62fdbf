"""What of the backend `vllm` needs no vLLM: its options, the norms with offsets, when it is chosen."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import gradients, logits_of, norm_noise, tallies_of, tiny_policy, tiny_session
from torch import Tensor, nn

from ttrl_pop.config import SamplingConfig
from ttrl_pop.config_file import validate
from ttrl_pop.errors import SamplerMismatchError, UsageError
from ttrl_pop.learn.learner import Learner
from ttrl_pop.population.base import NoPopulation
from ttrl_pop.sample.backend import backend_name
from ttrl_pop.sample.hf.backend import HfBackend
from ttrl_pop.sample.vllm.backend import VllmBackend, noisy_sites
from ttrl_pop.sample.vllm.options import OURS, REFUSED, VllmOptions
from ttrl_pop.sample.vllm.worker import runner_v1
from ttrl_pop.sample.vllm.worker.cpu_draws import make_rewindable
from ttrl_pop.sample.vllm.worker.norms import NOBODY, Minds, digest
from ttrl_pop.types import Mind


class AddNorm(nn.RMSNorm):
    """A norm as vLLM has them: with a residual it returns both."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        if residual is None:
            return super().forward(x)
        total = x + residual
        return super().forward(total), total


def norms(width: int = 4) -> nn.ModuleDict:
    return nn.ModuleDict({"first": AddNorm(width), "second": AddNorm(width), "other": AddNorm(width)})


def minds(model: nn.Module, slots: int = 3) -> Minds:
    return Minds(model, ["second", "first"], slots, 8, torch.device("cpu"))


def offsets(count: int) -> Tensor:
    return torch.arange(2 * count * 4, dtype=torch.float32).reshape(2, count, 4) + 1


def test_each_token_gets_the_offset_of_its_mind_and_site_and_the_residual_none() -> None:
    plain, model = norms(), norms()
    plane = minds(model)
    z = offsets(2)
    plane.write(z.numpy().tobytes(), 2)
    plane.tag(np.array([2, 0, 1, 1]))
    x, residual = torch.randn(4, 4), torch.randn(4, 4)
    for site, name in enumerate(["second", "first"]):
        expected = torch.stack([z[site, 1], torch.zeros(4), z[site, 0], z[site, 0]])
        torch.testing.assert_close(model[name](x), plain[name](x) + expected)
        torch.testing.assert_close(model[name](x[None])[0], plain[name](x) + expected)
        out, total = model[name](x, residual)
        torch.testing.assert_close(out, plain[name](x, residual)[0] + expected)
        assert torch.equal(total, x + residual)
    assert torch.equal(model["other"](x), plain["other"](x))


def test_no_mind_changes_nothing_to_the_bit() -> None:
    plain, model = norms(), norms()
    plane = minds(model)
    plane.write(offsets(3).numpy().tobytes(), 3)
    x = torch.randn(5, 4)
    plane.tag(np.zeros(5, np.int64))
    assert torch.equal(model["first"](x), plain["first"](x))


def test_the_sum_is_taken_in_float32() -> None:
    model = norms().to(torch.bfloat16)
    plane = minds(model)
    z = torch.full((2, 1, 4), 0.003)
    plane.write(z.numpy().tobytes(), 1)
    plane.tag(np.ones(4, np.int64))
    x = torch.randn(4, 4, dtype=torch.bfloat16)
    out = nn.RMSNorm.forward(model["first"], x)
    assert model["first"](x).dtype == torch.bfloat16
    assert torch.equal(model["first"](x), (out.float() + 0.003).to(torch.bfloat16))


def test_what_is_written_replaces_all_that_was_there() -> None:
    plane = minds(norms())
    assert plane.write(offsets(3).numpy().tobytes(), 3) == digest(offsets(3).numpy().tobytes())
    assert plane.write(offsets(1).numpy().tobytes(), 1) == digest(offsets(1).numpy().tobytes())
    assert torch.equal(plane.table[:, 1], offsets(1)[:, 0])
    assert not plane.table[:, 0].any()
    assert not plane.table[:, 2:].any()


def test_names_and_weights_of_norms_stay() -> None:
    model = norms()
    before = {name: p.clone() for name, p in model.named_parameters()}
    minds(model)
    assert {name for name, _ in model.named_parameters()} == before.keys()
    assert model.state_dict().keys() == before.keys()
    assert isinstance(model["first"], AddNorm)


@pytest.mark.parametrize(
    ("sites", "message"), [(["first", "third", "fourth"], r"no norm 'third' \(2 of 3"), (["first", "wide"], "shapes")]
)
def test_norms_that_do_not_fit_are_refused(sites: list[str], message: str) -> None:
    model = nn.ModuleDict({"first": AddNorm(4), "wide": AddNorm(6)})
    with pytest.raises(ValueError, match=message):
        Minds(model, sites, 1, 8, torch.device("cpu"))


def test_a_token_without_a_mind_is_an_error_once_armed() -> None:
    plane = minds(norms())
    plane.tag(np.array([NOBODY, 1]))
    assert plane.index.tolist() == [0, 1] + [0] * 6
    plane.armed = True
    with pytest.raises(ValueError, match="a request without a mind"):
        plane.tag(np.array([NOBODY, 1]))
    assert plane.owner(None) == plane.owner({}) == NOBODY
    assert plane.owner({"mind": 0}) == 0


def test_the_first_runner_is_tagged_after_its_own_layout() -> None:
    """A runner as vLLM's: `_prepare_inputs` may put the requests into another order."""
    plane = minds(norms())

    class Runner:
        input_batch = SimpleNamespace(req_ids=["a", "b", "c"])
        requests = {  # noqa: RUF012
            name: SimpleNamespace(sampling_params=SimpleNamespace(extra_args={"mind": slot}))
            for name, slot in (("a", 1), ("b", 2), ("c", 3))
        }

        def _prepare_inputs(self, scheduler_output: object, counts: object) -> str:
            self.input_batch.req_ids = ["c", "a", "b"]
            return "prepared"

    runner = Runner()
    runner_v1.install(runner, plane)
    scheduled = SimpleNamespace(num_scheduled_tokens={"a": 1, "b": 3, "c": 2})
    assert runner._prepare_inputs(scheduled, None) == "prepared"
    assert plane.index.tolist() == [3, 3, 1, 2, 2, 2, 0, 0]
    assert plane.take_tagged() == 6
    assert plane.take_tagged() == 0


def test_the_draw_of_a_row_whose_prompt_goes_on_is_taken_back() -> None:
    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(5)

    def draws(generator: torch.Generator, count: int) -> list[int]:
        return [int(torch.randint(0, 2**31, (1,), generator=generator)) for _ in range(count)]

    requests = {name: SimpleNamespace(generator=seeded()) for name in "ab"}
    batch = SimpleNamespace(num_reqs=2, req_ids=["a", "b"], generators={0: requests["a"].generator})
    # Row 1 has no seed, row 2 is of an earlier batch.
    discarded = SimpleNamespace(np=np.array([True, True, True]))
    runner = SimpleNamespace(input_batch=batch, requests=requests, discard_request_mask=discarded)
    expected = draws(seeded(), 4)
    assert draws(batch.generators[0], 1) == expected[:1]
    for _ in range(2):
        make_rewindable(runner)
        generator = batch.generators[0]
        assert generator is requests["a"].generator
        assert draws(generator, 1) == expected[1:2]
        # As vLLM does it.
        generator.set_offset(generator.get_offset() - 4)
    assert draws(batch.generators[0], 3) == expected[1:]
    assert set(batch.generators) == {0}


@pytest.mark.parametrize("name", [*REFUSED, *OURS])
def test_settings_under_which_minds_would_be_wrong_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=rf"backend_options: engine: {name} is "):
        validate(VllmOptions, {"engine": {name: 2}}, "backend_options")


def test_other_settings_of_vllm_pass_and_unknown_options_do_not() -> None:
    given = {"engine": {"pipeline_parallel_size": 1, "kv_cache_dtype": "auto", "swap_space": 2}}
    assert validate(VllmOptions, given, "backend_options").engine["swap_space"] == 2
    with pytest.raises(UsageError, match="unknown key 'gpu_memry'; did you mean 'gpu_memory'"):
        validate(VllmOptions, {"gpu_memry": 0.5}, "backend_options")
    with pytest.raises(UsageError, match="unknown key 'slots'"):
        validate(HfBackend.Options, {"slots": 1}, "backend_options")


def test_populations_that_vllm_does_not_know_are_refused() -> None:
    assert noisy_sites(NoPopulation(NoPopulation.Options())) == ()
    assert len(noisy_sites(tiny_policy().population)) == 5
    with pytest.raises(UsageError, match='level "sequence" only'):
        noisy_sites(norm_noise(0.1, level="token"))
    with pytest.raises(UsageError, match='scope "sequence" only'):
        noisy_sites(norm_noise(0.1, scope="completion"))

    class Other(NoPopulation):
        pass

    assert noisy_sites(Other(NoPopulation.Options())) == ()


def test_a_model_without_a_folder_or_in_float64_is_refused() -> None:
    policy = tiny_policy()
    with pytest.raises(UsageError, match="made in memory needs --backend hf"):
        VllmBackend(policy, SamplingConfig())
    policy.model = replace(policy.model, source="somewhere")
    with pytest.raises(UsageError, match="runs in float32 or bfloat16, got dtype float64"):
        VllmBackend(policy, SamplingConfig())


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_backend_says_what_to_install() -> None:
    policy = tiny_policy(dtype=torch.float32)
    policy.model = replace(policy.model, source="somewhere")
    with pytest.raises(UsageError, match=r"needs vLLM .*pip install 'ttrl-pop\[vllm\]'"):
        VllmBackend(policy, SamplingConfig())


def test_auto_takes_vllm_only_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"vllm": True}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if found.get(name) else None)
    for gpu, device, installed, expected in [
        (True, "auto", True, "vllm"),
        (True, "cuda:1", True, "vllm"),
        (True, "cpu", True, "hf"),
        (False, "auto", True, "hf"),
        (True, "auto", False, "hf"),
    ]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        found["vllm"] = installed
        assert backend_name("auto", device) == expected
    assert [backend_name(name, "auto") for name in ("hf", "vllm", "mine:Own")] == ["hf", "vllm", "mine:Own"]


def test_nothing_imports_vllm_before_it_is_chosen() -> None:
    script = (
        "import sys, ttrl_pop.cli.run, ttrl_pop.cli.app, ttrl_pop.sample.vllm; "
        "assert not any(name == 'vllm' or name.startswith('vllm.') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_offsets_are_those_that_the_minds_add() -> None:
    policy = tiny_policy()
    population = policy.population
    seen: list[Tensor] = []
    for module in policy.network.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.register_forward_hook(lambda m, i, out: seen.append(out))
    ids = torch.tensor([[3, 4, 5]])
    z = population.offsets([Mind(7), Mind(9)])
    assert z.shape == (5, 2, 16)
    logits_of(policy, ids, None)
    plain, seen[:] = list(seen), []
    logits_of(policy, ids, [Mind(9)])
    # The first norm reads what no offset has touched yet.
    torch.testing.assert_close(seen[0] - plain[0], z[0, 1].expand(1, 3, 16))


def test_a_gap_above_the_limit_stops_the_run_and_weights_are_truncated_where_asked() -> None:
    def update(**settings: object) -> object:
        session = tiny_session(**settings)
        learner = Learner(session.policy, session.config)

        return learner.learn(tallies_of(session), 1)

    assert update(learn__max_logprob_gap=1e-6).logprob_gap < 1e-9  # type: ignore[attr-defined]
    with pytest.raises(SamplerMismatchError, match=r"differ by .* learn.max_logprob_gap 1e-20"):
        update(learn__max_logprob_gap=1e-20)
    # With the noise off in the update the two sides differ by design.
    update(learn__max_logprob_gap=1e-20, learn__noise="mean")


def test_importance_weights_correct_what_a_second_engine_wrote() -> None:
    import dataclasses

    session = tiny_session(learn__max_grad_norm=1e9)
    tallies = tallies_of(session)
    # An engine that held every token for e times likelier than the learner does: each weighs 1/e.
    likelier = [
        dataclasses.replace(
            tally,
            group=dataclasses.replace(
                tally.group,
                rollouts_G=tuple(
                    dataclasses.replace(r, logprobs=tuple(value + 1 for value in r.logprobs))
                    for r in tally.group.rollouts_G
                ),
            ),
        )
        for tally in tallies
    ]
    plain = gradients(session, tallies)
    corrected = gradients(tiny_session(learn__max_grad_norm=1e9, learn__tis=True), likelier)
    for name, gradient in plain.items():
        torch.testing.assert_close(corrected[name], gradient / torch.e, rtol=1e-4, atol=1e-7)
