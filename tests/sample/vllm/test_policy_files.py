"""Policies as folders: read as they were written, under a name that nothing else has."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import norm_noise, tiny_policy

from ttrl_pop.model.policy import Policy
from ttrl_pop.sample.vllm import policy_files
from ttrl_pop.types import Mind


def policy() -> Policy:
    made = tiny_policy(population=norm_noise(0.3))
    with torch.no_grad():
        made.population.mu.normal_(generator=torch.Generator().manual_seed(1))
    return made


def test_a_population_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = policy()
    name = policy_files.publish(tmp_path, made.adapter, made.population)
    read = policy_files.read_population(tmp_path, name)
    minds = [Mind(0), Mind(7)]
    assert read.sites == made.population.sites
    torch.testing.assert_close(read.offsets(minds), made.population.offsets(minds).float())
    assert json.loads((tmp_path / name / policy_files.ADAPTER).read_text())["r"] > 0


def test_the_same_policy_has_the_same_name_and_another_has_another(tmp_path: Path) -> None:
    made = policy()
    names = [policy_files.publish(tmp_path, made.adapter, made.population) for _ in range(2)]
    with torch.no_grad():
        made.population.mu[0, 0] += 1
    names.append(policy_files.publish(tmp_path, made.adapter, made.population))
    names.append(policy_files.publish(tmp_path, None, made.population))
    assert names[0] == names[1]
    assert len(set(names)) == 3
    # Nothing is left of what was on its way.
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(set(names))


@pytest.mark.parametrize("file", ["population.safetensors", "adapter_model.safetensors", "sites.json"])
def test_other_files_under_a_name_are_refused_and_written_anew(file: str, tmp_path: Path) -> None:
    made = policy()
    name = policy_files.publish(tmp_path, made.adapter, made.population)
    path = tmp_path / name / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="other files than its name says"):
        policy_files.read_population(tmp_path, name)
    assert policy_files.publish(tmp_path, made.adapter, made.population) == name
    assert path.read_bytes() == whole


def test_the_same_policy_of_two_owners_has_two_names(tmp_path: Path) -> None:
    made = policy()
    names = [policy_files.publish(tmp_path, made.adapter, made.population, owner) for owner in ("a", "b", "", "a")]
    assert names[0] == names[3]
    assert len(set(names)) == 3
    policy_files.withdraw(tmp_path, names[0])
    minds = [Mind(0), Mind(7)]
    for name in names[1:3]:
        found = policy_files.read_population(tmp_path, name).offsets(minds)
        torch.testing.assert_close(found, made.population.offsets(minds).float())
    (tmp_path / names[1] / policy_files.OWNER).write_text("a")
    with pytest.raises(ValueError, match="other files than its name says"):
        policy_files.find(tmp_path, names[1])


def test_what_another_process_has_written_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written between a look at the folder and the own writing of it, and read by a server that instant."""
    made = policy()
    name = policy_files.publish(tmp_path, made.adapter, made.population)
    file = tmp_path / name / policy_files.WEIGHTS
    before = file.stat().st_ino
    own = policy_files._flaw
    looks: list[str] = []

    def late(folder: Path, name: str) -> str | None:
        looks.append(name)
        return "not there yet" if len(looks) == 1 and not os.environ.get("RENAMED") else own(folder, name)

    rename = Path.rename

    def renamed(self: Path, target: Any) -> Path:
        monkeypatch.setenv("RENAMED", "1")
        return rename(self, target)

    monkeypatch.setattr(policy_files, "_flaw", late)
    monkeypatch.setattr(Path, "rename", renamed)
    assert policy_files.publish(tmp_path, made.adapter, made.population) == name
    assert file.stat().st_ino == before


def test_another_user_may_read_a_policy(tmp_path: Path) -> None:
    made = policy()
    before = os.umask(0o077)
    try:
        name = policy_files.publish(tmp_path, made.adapter, made.population, "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o755
    files = list((tmp_path / name).iterdir())
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o644}
    assert len(files) == 5


def test_a_policy_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = policy_files.publish(tmp_path, policy().adapter, None)

    def refused(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(ValueError, match=r"cannot be read \(Permission denied\): may the server read"):
        policy_files.find(tmp_path, name)


@pytest.mark.parametrize("name", ["../secrets", "policy-", "policy-" + "0" * 31 + "/", "policy-" + "A" * 32, ""])
def test_what_is_no_name_leads_nowhere(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a policy is named policy- and 32 hexadecimal digits"):
        policy_files.find(tmp_path, name)


def test_a_policy_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does the server see the folder"):
        policy_files.find(tmp_path, "policy-" + "0" * 32)
    name = policy_files.publish(tmp_path, policy().adapter, None)
    with pytest.raises(ValueError, match="has no population"):
        policy_files.read_population(tmp_path, name)
