"""A model of a few layers is as wide as the whole one, and computes numbers; the size of a policy is what it takes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from fakes import FAMILIES, norm_noise, save_tiny, tiny_model

from ttrl_pop.config import LoraConfig
from ttrl_pop.kernels import install
from ttrl_pop.kernels.memory import limit_bytes
from ttrl_pop.model.load import LoadedModel, load_model, outline_model
from ttrl_pop.model.policy import Policy, with_adapter
from ttrl_pop.model.size import policy_size
from ttrl_pop.model.thin import thin
from ttrl_pop.population.base import NoPopulation

CPU = torch.device("cpu")


def vocabulary(model: LoadedModel) -> int:
    return int(model.network.config.get_text_config().vocab_size)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_of_it_is_a_layer_of_the_model(family: str) -> None:
    model = tiny_model(family)
    one = thin(model, 1, vocabulary(model), CPU)
    policy = Policy(one, norm_noise(), LoraConfig(rank=2))
    assert 2 * policy.cache_bytes_per_token == Policy(model, NoPopulation(NoPopulation.Options())).cache_bytes_per_token
    whole = {name: p.shape for name, p in tiny_model(family).network.named_parameters()}
    own = {name: p.shape for name, p in thin(model, 1, vocabulary(model), CPU).network.named_parameters()}
    assert own.items() < whole.items()
    assert len({name.split(".")[2] for name in own if ".layers." in name or ".h." in name}) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_part_of_the_vocabulary_is_enough_for_a_policy(family: str) -> None:
    model = tiny_model(family)
    few = vocabulary(model) // 2
    for settings in (model.network.config, model.network.config.get_text_config()):
        settings.pad_token_id = few
    network = Policy(thin(model, 1, few, CPU), norm_noise(), LoraConfig(rank=2)).network
    assert len(network.get_output_embeddings().weight) == len(network.get_input_embeddings().weight) == few
    assert model.network.config.pad_token_id == few, "the model itself stays as it is"


def test_weights_that_are_one_stay_one() -> None:
    model = tiny_model()
    network = thin(model, 1, vocabulary(model), CPU).network
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight


def test_an_outline_is_the_model_without_its_weights(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    outline, loaded = outline_model(str(folder)), load_model(str(folder))
    assert {p.device.type for p in outline.network.parameters()} == {"meta"}
    for name in ("context_length", "eos_ids", "source", "notices"):
        assert getattr(outline, name) == getattr(loaded, name)
    shapes = [(n, p.shape, p.dtype) for n, p in outline.network.named_parameters()]
    assert shapes == [(n, p.shape, p.dtype) for n, p in loaded.network.named_parameters()]


@pytest.mark.parametrize("merges", [True, False], ids=["merged", "beside"])
@pytest.mark.parametrize("share", [1.0, 0.0, None], ids=["all", "nothing", "some"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "none"])
def test_a_size_is_what_the_policy_takes(
    share: float | None, merges: bool, dtype: torch.dtype, adapter: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # None: a share of the memory of any machine into which some layers fit and some do not.
    monkeypatch.setattr(install, "LAYOUT_SHARE", 12_000 / limit_bytes(CPU) if share is None else share)
    monkeypatch.setattr(install, "MERGED_SHARE", float(merges))
    lora = LoraConfig(rank=2) if adapter else None
    population = norm_noise()
    model = tiny_model(dtype=dtype)
    weights = sum(p.numel() * p.element_size() for p in model.network.parameters())
    population.attach(model.network)
    if lora is not None:
        with_adapter(model.network, lora, 0)
    found = install._projections(model.network).values()
    merged = sum(p.merged.numel() * p.merged.element_size() for p in found if p.merged is not None)
    laid_out = sum(p.weight.numel() * p.weight.element_size() for p in found if p.laid_out or p.joined)
    learned = [p for p in [*model.network.parameters(), *population.parameters()] if p.requires_grad]
    bare = tiny_model(dtype=dtype)
    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(bare.network.config, dtype=dtype)
    outline = replace(bare, network=network.requires_grad_(False))
    size = policy_size(outline, norm_noise(), lora, CPU)
    assert (size.weights, size.merged, size.laid_out) == (weights, merged, laid_out)
    assert size.trained == sum(p.numel() * p.element_size() for p in learned)
