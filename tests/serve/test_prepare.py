"""What vLLM's server is started with."""

import json
from pathlib import Path

import pytest
from fakes import norm_noise, tiny_policy

from ttrl_pop.config import Config
from ttrl_pop.errors import UsageError
from ttrl_pop.population.base import Population
from ttrl_pop.sample.vllm.plugin import SETTINGS, WORKER, by_seed
from ttrl_pop.serve import prepare as preparing
from ttrl_pop.serve.names import Served
from ttrl_pop.serve.prepare import arguments_of, prepare, shown
from ttrl_pop.store.directory import RunDirectory

POLICY = "policy-" + "0" * 32
CONFIG = Config.model_validate({"model": "m"})


def flags(arguments: list[str]) -> dict[str, str]:
    """Values of those arguments that have one."""
    return {
        a: b for a, b in zip(arguments, [*arguments[1:], "--"], strict=True) if a.startswith("--") and b[:2] != "--"
    }


def test_minds_are_served_by_the_worker_that_says_where_the_plug_in_is_missing() -> None:
    served = Served("sums", "sums/base", POLICY, adapted=True, noisy=True, config=CONFIG)
    given = flags(arguments_of(served, "model", "float32", Path("/run/serve"), 8))
    assert given["--worker-cls"] == WORKER
    assert by_seed(json.loads(given["--additional-config"])) == {"folder": "/run/serve"}
    assert json.loads(given["--additional-config"]).keys() == {SETTINGS}
    # A path may have a comma.
    assert json.loads(given["--lora-modules"]) == {"name": str(POLICY), "path": f"/run/serve/{POLICY}"}
    assert given["--logprobs-mode"] == "processed_logprobs"


def test_a_model_without_noise_and_adapter_is_served_as_it_is() -> None:
    served = Served("sums", "sums/base", None, adapted=False, noisy=False, config=CONFIG)
    given = arguments_of(served, "model", "float32", Path("/run/serve"), None)
    assert not {"--worker-cls", "--additional-config", "--enable-lora", "--lora-modules"} & {*given}
    # Votes count what tokens were drawn from, with or without noise.
    assert flags(given)["--logprobs-mode"] == "processed_logprobs"


@pytest.mark.parametrize(
    "argument", ["--model", "--additional-config={}", "--worker-cls", "--served_model_name=x", "--lora-modules"]
)
def test_what_minds_are_served_by_cannot_be_given_again(argument: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is what serve serves minds by"):
        prepare(RunDirectory(tmp_path), tmp_path, CONFIG, "sums", tmp_path, ["--max-model-len", "64", argument])


def test_noise_that_begins_behind_the_prompt_is_refused_in_the_words_of_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(population: Population) -> str:
        monkeypatch.setattr(preparing, "trained_policy", lambda *_: tiny_policy(population=population))
        monkeypatch.setattr(preparing.identity, "load", lambda run: type("Known", (), {"model": "m"}))
        with pytest.raises(UsageError) as error:
            prepare(RunDirectory(tmp_path), tmp_path, CONFIG, "sums", tmp_path)
        return str(error.value)

    for option, value in (("scope", "completion"), ("level", "token")):
        text = refused(norm_noise(**{option: value}))
        assert text == f'vLLM knows noise of {option} "sequence" only; ask this run by ttrl-pop sample for "{value}"'


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["python", "--api-key", "s3cret", "--port", "80"], "python --api-key KEY --port 80"),
        (["python", "--api-key", "s3cret", "t0o", "--port", "80"], "python --api-key KEY KEY --port 80"),
        (["python", "--api-key=s3cret", "a b"], "python --api-key=KEY 'a b'"),
        (["python", "--api_key", "s3cret"], "python --api_key KEY"),
    ],
)
def test_a_command_is_shown_without_its_keys(command: list[str], text: str) -> None:
    assert shown(command) == text
