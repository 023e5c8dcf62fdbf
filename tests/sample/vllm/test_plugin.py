"""The plug-in of vLLM, as far as it needs no vLLM: which mind a request names."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import norm_noise, tiny_network, tiny_policy
from torch import nn

from ttrl_pop.population.norm_noise import NormNoise
from ttrl_pop.sample.vllm import policy_files
from ttrl_pop.sample.vllm.plugin import Norms, by_seed, check_adapter, mind_of, norms_of

NAME = "policy-" + "0" * 32


def norms() -> Norms:
    return norms_of(tiny_network("llama").config)


def unasked() -> Norms:
    raise AssertionError("there is no population to hold against a model")


def test_only_settings_of_minds_by_their_seeds_are_ours() -> None:
    assert by_seed({"ttrl_pop": {"sigma": 0.1}}) == {"sigma": 0.1}
    assert by_seed({"ttrl_pop": {"folder": "x"}}) == {"folder": "x"}
    # Those of the backend `vllm`, and what is nobody's.
    for other in ({"ttrl_pop": {"sites": [], "slots": 3}}, {"ttrl_pop": 3}, {}, None, "x"):
        assert by_seed(other) is None


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"mind": "7"}, "a mind is a seed"),
        ({"mind": -1}, "a mind is a seed"),
        ({"mind": 2**63}, "a mind is a seed"),
        ({"mind": 1.0}, "a mind is a seed"),
        ({"mind": True}, "a mind is a seed"),
        ({"mind": [7]}, "a mind is a seed"),
        ({"population": NAME}, "names a mind of it too"),
        ({"mind": 7}, "needs a population"),
        ({"mind": 7, "population": 3}, "named by a text"),
        ({"mind": 7, "population": [NAME]}, "named by a text"),
        ({"mind": 7, "population": "../x"}, "a policy is named"),
        ({"mind": 7, "population": ""}, "a policy is named"),
        ({"mind": 7, "population": "x" * 300}, "a policy is named"),
        ({"mind": 7, "population": NAME}, "does the server see the folder"),
    ],
)
def test_what_is_no_mind_is_refused(extra: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        mind_of(extra, {"folder": str(tmp_path)}, norms)


def test_a_server_of_one_population_has_no_other() -> None:
    assert mind_of({"mind": 7}, {"sigma": 0.1}, unasked) == ("", 7)
    assert mind_of(None, {"sigma": 0.1}, unasked) is mind_of({"other": 1}, {"sigma": 0.1}, unasked) is None
    with pytest.raises(ValueError, match="has one population"):
        mind_of({"mind": 7, "population": NAME}, {"sigma": 0.1}, unasked)


def test_the_files_of_a_policy_are_read_through_once_and_a_withdrawn_one_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = policy_files.publish(tmp_path, None, tiny_policy(population=norm_noise(0.3)).population)
    read: list[str] = []
    own = policy_files.find
    monkeypatch.setattr(policy_files, "find", lambda folder, name: read.append(name) or own(folder, name))
    for seed in range(5):
        assert mind_of({"mind": seed, "population": name}, {"folder": str(tmp_path)}, norms) == (name, seed)
    assert read == [name]
    policy_files.withdraw(tmp_path, name)
    with pytest.raises(ValueError, match="does the server see the folder"):
        mind_of({"mind": 0, "population": name}, {"folder": str(tmp_path)}, norms)


def test_an_adapter_that_has_been_withdrawn_is_refused(tmp_path: Path) -> None:
    name = policy_files.publish(tmp_path, tiny_policy().adapter, None)
    own, other = (SimpleNamespace(lora_path=str(path)) for path in (tmp_path / name, tmp_path / "other" / name))
    settings = {"folder": str(tmp_path)}
    check_adapter(own, settings)
    policy_files.withdraw(tmp_path, name)
    with pytest.raises(ValueError, match=f"{name} has been withdrawn"):
        check_adapter(own, settings)
    # What is not in the folder is not ours to judge.
    for lora, given in ((None, settings), (other, settings), (own, {"sigma": 0.1})):
        check_adapter(lora, given)


def of(
    change: Callable[[NormNoise], object], family: str = "llama", width: int = 16, spread: str = "site"
) -> NormNoise:
    """A population of a tiny model, changed."""
    noise = norm_noise(0.3, spread=spread)
    noise.attach(tiny_network(family, width=width))
    with torch.no_grad():
        change(noise)
    return noise


@pytest.mark.parametrize(
    ("population", "message"),
    [
        (None, "has no population"),
        (of(lambda noise: None, width=8), "norms 8 wide, those of this server's model are 16 wide"),
        (of(lambda noise: None, "gemma3"), "is no norm of this server's model"),
        *(
            (
                of(lambda noise: setattr(noise, "sites", noise.sites[1:]), spread=spread),
                "no mu and sigma for each of its norms",
            )
            for spread in ("site", "dim")
        ),
        (
            of(lambda noise: setattr(noise, "log_sigma", nn.Parameter(noise.log_sigma[1:]))),
            "no mu and sigma for each of its norms",
        ),
        (of(lambda noise: noise.log_sigma[0].fill_(torch.nan)), "no finite number"),
        (of(lambda noise: noise.log_sigma[0].fill_(1e3)), "no finite number"),
        (of(lambda noise: noise.mu[0].fill_(torch.inf)), "no finite number"),
    ],
)
def test_minds_that_the_worker_could_not_draw_are_refused(
    population: NormNoise | None, message: str, tmp_path: Path
) -> None:
    """There, an error would end the engine for everybody."""
    name = policy_files.publish(tmp_path, tiny_policy().adapter, population)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            mind_of({"mind": 1, "population": name}, {"folder": str(tmp_path)}, norms)


def test_a_population_without_spread_or_of_some_norms_is_one(tmp_path: Path) -> None:
    still = of(lambda noise: noise.set_scale(0.0))
    for noise in (still, norm_noise(0.3, sites="last-third"), norm_noise(0.3, spread="dim")):
        if not noise.sites:
            noise.attach(tiny_network("llama"))
        name = policy_files.publish(tmp_path, None, noise)
        assert mind_of({"mind": 1, "population": name}, {"folder": str(tmp_path)}, norms) == (name, 1)
