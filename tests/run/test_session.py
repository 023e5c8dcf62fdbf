"""What is decided at the start of a run: the configuration that is resolved, runs and is saved is one."""

import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import PROBLEMS, save_tiny, tiny_session
from typer.testing import CliRunner, Result

from ttrl_pop.cli.app import app
from ttrl_pop.config import Config
from ttrl_pop.config_file import dump_config, load_config, validate
from ttrl_pop.errors import UsageError
from ttrl_pop.model.load import resolve_device
from ttrl_pop.model.prompts import opens_thoughts
from ttrl_pop.population.options import NormNoiseOptions
from ttrl_pop.randomness import OUTSIDE_TRAINING
from ttrl_pop.run.session import Session, _with_options, open_session, resolve
from ttrl_pop.sample.backend import Request, Weights
from ttrl_pop.sample.hf.backend import HfBackend
from ttrl_pop.sample.vllm.options import VllmOptions
from ttrl_pop.store import identity
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.store.identity import CONFIG
from ttrl_pop.types import AnswerKey, ProblemSet, Rollout

ABSENT = "cuda:99"


class Second(HfBackend):
    """An engine whose log-probabilities call for something of the learner."""

    def learner_defaults(self) -> dict[str, Any]:
        return {"tis": True, "max_logprob_gap": 0.25}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


def opened(tiny: Path, **settings: Any) -> Session:
    given = {
        "model": str(tiny),
        "vote.grader": "exact",
        "problems.form": "raw",
        "sampling.max_new_tokens": 4,
        **settings,
    }
    return open_session(load_config(None, given), ProblemSet(PROBLEMS, AnswerKey({"p0": "56"}), "f"), adapter=True)


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"tiss": True}, "^backend Second: learner_defaults: unknown key 'tiss'; did you mean 'tis'"),
        ({"max_logprob_gap": -1.0}, "^backend Second: learner_defaults: max_logprob_gap: .* got -1.0"),
        (None, "^backend Second: learner_defaults must return a dict of settings of learn, got a NoneType"),
    ],
)
def test_what_an_engine_calls_for_must_be_settings_of_the_learner(
    defaults: Any, message: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Second, "learner_defaults", lambda engine: defaults)
    with pytest.raises(UsageError, match=message):
        opened(tiny, backend=f"{__name__}:Second")


def open_settings(config: Config) -> dict[str, Any]:
    return {
        "device": config.device,
        "dtype": config.dtype,
        "backend": config.backend,
        "tis": config.learn.tis,
        "max_logprob_gap": config.learn.max_logprob_gap,
        "population_lr": config.learn.population_lr,
        "thinking": config.vote.thinking,
    }


def test_what_was_left_open_is_decided(tiny: Path) -> None:
    session = opened(tiny, **{"learn.lr": 1e-3})
    device = resolve_device("auto").type
    assert open_settings(session.config) == {
        "device": device,
        "dtype": "float32" if device == "cpu" else "bfloat16",
        "backend": "hf",
        "tis": None,
        "max_logprob_gap": None,
        "population_lr": 5 * 1e-3,
        "thinking": False,
    }
    assert opened(tiny, backend="auto", device="cpu").config.backend == "hf"
    assert opens_thoughts(session.policy.model.tokenizer) is False
    assert (session.problems, dict(session.gold)) == (PROBLEMS, {"p0": "56"})


def test_what_the_backend_calls_for_is_filled_in_and_what_the_user_gave_stays(tiny: Path) -> None:
    asked = open_settings(opened(tiny, backend=f"{__name__}:Second").config)
    assert (asked["tis"], asked["max_logprob_gap"]) == (True, 0.25)
    given = {
        "device": "cpu",
        "dtype": "float64",
        "backend": f"{__name__}:Second",
        "learn.tis": False,
        "learn.max_logprob_gap": 0.5,
        "learn.population_lr": 0.125,
        "vote.thinking": True,
    }
    session = opened(tiny, **given)
    assert list(open_settings(session.config).values()) == list(given.values())
    assert session.rules.thinking
    assert session.policy.network.dtype == torch.float64


def test_marks_of_thoughts_that_the_chat_template_opens_are_opened(tiny: Path) -> None:
    given = ("<plan>", "</plan>")
    session = opened(tiny, **{"vote.thinking": list(given)})
    assert session.config.vote.thinking == session.rules.thinking == given
    template = session.policy.model.tokenizer.chat_template
    session.policy.model.tokenizer.chat_template = f"{template}<plan>"
    resolved = resolve(session.config, "hf", session.policy, session.backend)
    assert resolved.vote.thinking == ("", "</plan>")
    assert resolve(resolved, "hf", session.policy, session.backend) == resolved


def test_a_resolved_configuration_is_resolved_to_itself(tiny: Path) -> None:
    config = opened(tiny, backend=f"{__name__}:Second").config
    again = open_session(config, ProblemSet(PROBLEMS, AnswerKey(), "f"), adapter=True)
    assert again.config == config


def test_the_options_of_plug_ins_are_written_out(tiny: Path) -> None:
    config = opened(tiny).config
    assert config.population.options == {
        "sigma": "auto",
        "target_kl": 0.04,
        "target_flips": 0.03,
        "spread": "site",
        "level": "sequence",
        "scope": "sequence",
        "sites": "all",
        "decay": 1.0,
        "final_mu": False,
    }
    assert config.backend_options == {}
    assert opened(tiny, **{"backend_options.graphs": False}).config.backend_options == {"graphs": False}
    assert opened(tiny, **{"population.options.sigma": 1}).config.population.options["sigma"] == 1.0
    assert validate(Config, tomllib.loads(dump_config(config)), "saved") == config


def test_options_that_are_none_or_nested_stay_what_they_are() -> None:
    given = VllmOptions(max_model_len=128, engine={"swap_space": 2})
    saved = dump_config(_with_options(Config(), NormNoiseOptions(), given))
    assert validate(VllmOptions, tomllib.loads(saved)["backend_options"], "saved") == given


def test_sampling_takes_engine_prompts_and_seed_from_the_session() -> None:
    seen: list[Request] = []

    class Seen(HfBackend):
        def rollouts(self, requests: Sequence[Request], weights: Weights = "policy") -> Iterator[tuple[int, Rollout]]:
            seen.extend(requests)
            return super().rollouts(requests, weights)

    session = tiny_session(backend=Seen, seed=7)
    (mind,) = session.policy.population.spawn(7, 1, 1)
    (group,) = session.sample(PROBLEMS[1:2], [mind], 2, OUTSIDE_TRAINING, purpose="label")
    assert [request.stream_key for request in seen] == [("label", 7, 0, "p1", mind.seed, s) for s in range(2)]
    assert {request.prompt_ids for request in seen} == {session.prompts["p1"]}
    assert group.problem == PROBLEMS[1]


def ttrl(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def trained(tiny: Path, tmp_path: Path) -> RunDirectory:
    """One step of training."""
    problems = tmp_path / "p.jsonl"
    problems.write_text("".join(json.dumps({"id": p.id, "prompt": p.prompt}) + "\n" for p in PROBLEMS))
    settings = ["population.options.sigma=0.3", "sampling.max_new_tokens=4", "vote.grader=exact", "learn.lora.rank=2"]
    arguments = ["--model", tiny, "--minds=2", "--steps=1", "--quiet", "--out", tmp_path / "run"]
    ended = ttrl("run", problems, *arguments, *(f"--set={setting}" for setting in settings))
    assert ended.exit_code == 0, ended.stderr
    return RunDirectory(tmp_path / "run")


def test_the_file_that_is_saved_is_what_ran(trained: RunDirectory) -> None:
    saved = load_config(trained.config, {})
    stored = ProblemSet(PROBLEMS, AnswerKey(), "f")
    assert open_session(saved, stored, adapter=True).config == saved
    assert saved.device == resolve_device("auto").type
    assert saved.learn.population_lr == 5 * saved.learn.lr


def test_a_run_whose_device_is_not_here_says_how_to_go_on_and_goes_on(trained: RunDirectory) -> None:
    here = load_config(trained.config, {}).device
    text = trained.config.read_text()
    identity.record(trained, CONFIG, text.replace(f'device = "{here}"', f'device = "{ABSENT}"').encode())
    for command in (["run", "--resume", trained.path, "--steps=2"], ["eval", trained.problems, "--run", trained.path]):
        refused = ttrl(*command)
        assert refused.exit_code == 2
        assert refused.stderr.startswith(f"ttrl-pop: device '{ABSENT}' is not available here: ")
        assert "; pass --set device=cpu" in refused.stderr
    resumed = ttrl("run", "--resume", trained.path, "--steps=2", "--set", "device=cpu")
    assert resumed.exit_code == 0
    assert f"the run goes on on cpu, it was on {ABSENT}" in resumed.stderr
    assert load_config(trained.config, {}).device == "cpu"
    again = ttrl("run", "--resume", trained.path, "--steps=3")
    assert again.exit_code == 0
    assert "the run goes on on" not in again.stderr


def test_a_device_that_is_none_is_an_error() -> None:
    with pytest.raises(UsageError, match="device 'toaster' is not available here"):
        resolve_device("toaster")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"learn.lora.rank": 17},
            "learn.lora.rank must be at most 16, the width of this model's hidden states",
        ),
        ({"learn.lora.rank": 10**8}, "learn.lora.rank must be at most 16"),
        ({"learn.lora.targets": "("}, "learn.lora.targets"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused_before_it_takes_memory(
    tiny: Path, setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        opened(tiny, **setting)


def test_what_takes_long_is_told_as_it_begins(tiny: Path) -> None:
    told: list[str] = []
    config = load_config(None, {"model": str(tiny), "vote.grader": "exact", "sampling.max_new_tokens": 4})
    open_session(config, ProblemSet(PROBLEMS, AnswerKey(), "f"), adapter=True, stage=told.append)
    assert told == [f"loading {tiny}", "starting the backend hf"]
