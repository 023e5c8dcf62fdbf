"""The plug-in of vLLM, as far as it needs no vLLM: which mind a request names."""

from pathlib import Path
from typing import Any

import pytest
from fakes import norm_noise, tiny_policy

from ttrl_pop.sample.vllm import policy_files
from ttrl_pop.sample.vllm.plugin import by_seed, mind_of

NAME = "policy-" + "0" * 32


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
        ({"mind": 7, "population": NAME}, "does the server see the folder"),
    ],
)
def test_what_is_no_mind_is_refused(extra: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        mind_of(extra, {"folder": str(tmp_path)})


def test_a_server_of_one_population_has_no_other() -> None:
    assert mind_of({"mind": 7}, {"sigma": 0.1}) == ("", 7)
    assert mind_of(None, {"sigma": 0.1}) is mind_of({"other": 1}, {"sigma": 0.1}) is None
    with pytest.raises(ValueError, match="has one population"):
        mind_of({"mind": 7, "population": NAME}, {"sigma": 0.1})


def test_the_files_of_a_policy_are_read_through_once_and_a_withdrawn_one_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = policy_files.publish(tmp_path, None, tiny_policy(population=norm_noise(0.3)).population)
    read: list[str] = []
    own = policy_files.find
    monkeypatch.setattr(policy_files, "find", lambda folder, name: read.append(name) or own(folder, name))
    for seed in range(5):
        assert mind_of({"mind": seed, "population": name}, {"folder": str(tmp_path)}) == (name, seed)
    assert read == [name]
    policy_files.withdraw(tmp_path, name)
    with pytest.raises(ValueError, match="does the server see the folder"):
        mind_of({"mind": 0, "population": name}, {"folder": str(tmp_path)})
