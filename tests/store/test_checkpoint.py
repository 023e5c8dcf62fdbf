"""Run directory: a checkpoint is whole or it is none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from fakes import ROOT, logits_of, norm_noise, save_tiny, tiny_policy, tiny_session
from hypothesis import given
from hypothesis import strategies as st

from ttrl_pop.config import LoraConfig
from ttrl_pop.errors import CheckpointError, UsageError
from ttrl_pop.model.load import load_model
from ttrl_pop.model.policy import Policy
from ttrl_pop.run.progress import Progress
from ttrl_pop.store import checkpoint, files
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.train import train

IDS = torch.arange(3, 21).reshape(2, 9)


@pytest.fixture
def trained(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    session = tiny_session(steps=4, sampling__temperature=2.0)
    list(train(session, run, Progress()))
    return run


def test_a_checkpoint_brings_back_the_policy(trained: RunDirectory) -> None:
    folder = trained.checkpoint(4)
    session = tiny_session(steps=4, sampling__temperature=2.0)
    list(train(session, RunDirectory(trained.path), Progress()))
    policy = session.policy
    fresh = tiny_policy(warm=False)
    minds = policy.population.spawn(0, 1, 2)
    assert not torch.equal(logits_of(fresh, IDS, minds), logits_of(policy, IDS, minds))
    checkpoint.load_policy(folder, fresh)
    assert torch.equal(logits_of(fresh, IDS, minds), logits_of(policy, IDS, minds))
    assert fresh.version == policy.version > 0


def test_a_trained_population_goes_back_to_its_start(trained: RunDirectory) -> None:
    trained_one, other = tiny_policy(warm=False), tiny_policy(population=norm_noise(0.7), warm=False)
    start = {name: value.clone() for name, value in trained_one.population.state_dict().items()}
    adapter = {name: value.clone() for name, value in other.adapter_parameters().items()}
    checkpoint.load_policy(trained.checkpoint(4), trained_one)
    assert not torch.equal(trained_one.population.mu, start["mu"])
    checkpoint.load_start(trained.checkpoint(4), other)
    assert all(torch.equal(value, start[name]) for name, value in other.population.state_dict().items())
    assert all(torch.equal(value, adapter[name]) for name, value in other.adapter_parameters().items())
    with pytest.raises(CheckpointError, match="population does not fit"):
        checkpoint.load_start(trained.checkpoint(4), tiny_policy(population=norm_noise(0.3, spread="dim")))


def test_a_damaged_checkpoint_is_none_and_the_one_before_counts(trained: RunDirectory) -> None:
    assert checkpoint.latest(trained) == 4
    file = trained.checkpoint(4) / "population.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert checkpoint.latest(trained) == 3
    (trained.checkpoint(3) / "MANIFEST").unlink()
    assert checkpoint.latest(trained) not in (3, 4), "only the best one is left"
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        checkpoint.load_state(trained.checkpoint(3))
    with pytest.raises(UsageError, match="no whole checkpoint in this run"):
        checkpoint.newest(RunDirectory(trained.path / "rollouts"))


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_missing_file_is_noticed(trained: RunDirectory, name: str) -> None:
    (trained.checkpoint(4) / name).unlink()
    assert checkpoint.latest(trained) == 3


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"{}", b'"x"', b'{"state.json": 1}', b"[" * 10**6])
def test_a_damaged_manifest_makes_a_folder_no_checkpoint(trained: RunDirectory, content: bytes) -> None:
    (trained.checkpoint(4) / "MANIFEST").write_bytes(content)
    assert checkpoint.latest(trained) == 3


def test_damaged_checkpoints_do_not_count_as_kept(tmp_path: Path) -> None:
    run, policy = RunDirectory(tmp_path), tiny_policy()
    for step in (1, 2, 3, 4):
        checkpoint.save(run, step, policy, {}, [], [], {})
    for step in (3, 4):
        (run.checkpoint(step) / "MANIFEST").write_bytes(b"{")
    checkpoint.save(run, 5, policy, {}, [], [], {})
    checkpoint.prune(run, 2, None)
    assert [step for step in range(1, 6) if checkpoint.is_whole(run.checkpoint(step))] == [2, 5]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    policy = tiny_policy()
    for step in range(1, 7):
        checkpoint.save(run, step, policy, {}, [], [], {"best_step": 2})
        if step == 2:
            checkpoint.point_best(run, 2)
        checkpoint.prune(run, 2, 2 if step >= 2 else None)
    assert sorted(folder.name for folder in run.checkpoints.iterdir()) == ["step_0002", "step_0005", "step_0006"]
    assert (run.path / "best").resolve() == run.checkpoint(2).resolve()
    assert checkpoint.newest(run) == run.checkpoint(6)


def test_what_a_kill_left_behind_is_cleared(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    (run.checkpoints / ".saving-step_0003").mkdir(parents=True)
    checkpoint.save(run, 3, tiny_policy(), {}, [], [], {})
    (run.checkpoints / ".saving-step_0009").mkdir()
    checkpoint.prune(run, 2, None)
    assert [folder.name for folder in run.checkpoints.iterdir()] == ["step_0003"]


def test_a_checkpoint_of_another_shape_is_refused(trained: RunDirectory) -> None:
    with pytest.raises(CheckpointError, match="population does not fit"):
        checkpoint.load_policy(trained.checkpoint(4), tiny_policy(population=norm_noise(0.3, spread="dim")))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_adapter_opens_in_plain_peft(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    policy = Policy(load_model(str(folder)), norm_noise(0.0), LoraConfig(rank=2, alpha=4))
    with torch.no_grad():
        for parameter in policy.adapter_parameters().values():
            parameter.add_(0.05)
    saved = checkpoint.save(RunDirectory(tmp_path / "run"), 1, policy, {}, [], [], {})
    assert sorted(p.name for p in (saved / "adapter").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    plain = peft.PeftModel.from_pretrained(load_model(str(folder)).network, saved / "adapter")
    with torch.no_grad():
        expected = plain(input_ids=IDS, use_cache=False).logits
        torch.testing.assert_close(logits_of(policy, IDS, None), expected)


SAVE = """
import sys
from pathlib import Path
from fakes import tiny_policy
from ttrl_pop.store import checkpoint
from ttrl_pop.store.directory import RunDirectory
checkpoint.save(RunDirectory(Path(sys.argv[1])), 1, tiny_policy(), {}, [], [], {})
"""


@pytest.mark.slow
def test_two_processes_save_the_same_bytes(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        subprocess.run([sys.executable, "-c", SAVE, str(tmp_path / seed)], env=environment, check=True)
    first, second = ((tmp_path / seed / "checkpoints" / "step_0001" / "MANIFEST").read_text() for seed in ("1", "2"))
    assert json.loads(first) == json.loads(second)
    assert first == second


TEXT = st.text(st.characters(exclude_categories=[]), max_size=20)


@given(st.lists(st.dictionaries(TEXT, TEXT, max_size=2), max_size=3), st.sampled_from(["a.jsonl", "a.jsonl.zst"]))
def test_lines_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]], name: str
) -> None:
    # Lone surrogates, line separators and NUL are among what models write.
    path = tmp_path_factory.mktemp("lines") / name
    files.write_lines(path, rows)
    assert list(files.read_lines(path)) == rows


def test_one_process_at_a_time(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with run.lock(), pytest.raises(UsageError, match="another process"), RunDirectory(tmp_path).lock():
        pass
    with run.lock():
        pass
