"""Each form of export, opened again by those who have only transformers or peft, is the run's mind up to rounding."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from exports import Tiny
from fakes import ALPHABET, FAMILIES, SPECIAL, norm_noise, tiny_network, tiny_policy, tiny_tokenizer

from ttrl_pop.errors import UsageError
from ttrl_pop.export import plain
from ttrl_pop.export.export import FORMS, _choose
from ttrl_pop.export.proof import ROUNDING, ProofError, _logits, compare
from ttrl_pop.export.readers import linear_readers
from ttrl_pop.export.trained import NoFormError, offsets_of
from ttrl_pop.model.load import load_model
from ttrl_pop.population.base import MEAN, Population
from ttrl_pop.population.norm_noise import final_site, norm_sites
from ttrl_pop.types import Mind

HELD = {
    "llama": {True: "adapter code", False: "plain adapter code"},
    "qwen2": {True: "adapter code", False: "plain adapter code"},
    "qwen3": {True: "adapter code", False: "adapter code"},
    "gemma3": {True: "code", False: "code"},
    # With sliding windows, which Llama has not.
    "mistral": {True: "adapter code", False: "adapter code"},
    "phi3": {True: "adapter code", False: "plain adapter code"},
    "gpt2": {True: "plain code", False: "plain code"},
}
"""Family → whether mu of the final norm learns → the forms that hold its mean mind."""

MakeTiny = Callable[..., Tiny]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> MakeTiny:
    folder = tmp_path_factory.mktemp("base")
    return lambda family, final_mu=True, **more: Tiny(folder / family, family, final_mu, **more)


@pytest.mark.parametrize("final_mu", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_form_takes_it_gives_back_up_to_rounding(
    family: str, final_mu: bool, tiny: MakeTiny, tmp_path: Path
) -> None:
    policy = tiny(family, final_mu)
    found = policy.evidence()
    held = []
    for form in FORMS:
        try:
            folder = policy.export(form, tmp_path / form)
        except NoFormError:
            continue
        held.append(form)
        proof = compare(FORMS[form].reopen(folder, torch.float32), found)
        assert proof.gap < 2e-5 * proof.size
        # The mind is large beside that, so it is in there.
        assert proof.moved > 1000 * proof.gap
        assert proof.equal == proof.prompts == 6
    assert " ".join(held) == HELD[family][final_mu]
    offsets = offsets_of(policy.policy.population, MEAN)
    assert _choose("auto", policy.network(), offsets, lambda text: None) == held[0]


@pytest.mark.parametrize(("family", "form"), [("llama", "adapter"), ("gemma3", "code"), ("gpt2", "plain")])
def test_a_mind_with_noise_is_exported_like_the_mean(family: str, form: str, tiny: MakeTiny, tmp_path: Path) -> None:
    policy, mind = tiny(family), Mind(11)
    network = FORMS[form].reopen(policy.export(form, tmp_path / "out", mind), torch.float32)
    compare(network, policy.evidence(mind))
    with pytest.raises(ProofError, match="another model than the run"):
        compare(network, policy.evidence(Mind(12)))


@pytest.mark.parametrize(("family", "form"), [("llama", "plain"), ("qwen3", "adapter"), ("gemma3", "code")])
def test_in_bfloat16_a_folder_is_as_near_to_the_exact_mind_as_the_run_is(
    family: str, form: str, tmp_path: Path
) -> None:
    exact = Tiny(tmp_path / "base", family, final_mu=False, width=64)
    policy = Tiny(tmp_path / "base", family, final_mu=False, width=64, dtype="bfloat16")
    policy.policy.population.load_state_dict(exact.policy.population.state_dict())
    found = policy.evidence()
    network = FORMS[form].reopen(policy.export(form, tmp_path / "out"), torch.bfloat16).eval()
    assert network.dtype == torch.bfloat16
    proof = compare(network, found)
    assert proof.gap < proof.moved / 5
    run, folder = [], []
    for witness in found.witnesses:
        ids = torch.tensor([witness.prompt_ids + witness.completion_ids[:-1]])
        own = _logits(exact.policy, witness.prompt_ids, witness.completion_ids, MEAN).detach()
        run.append(witness.logits_KV - own)
        folder.append(network(input_ids=ids).logits[0, len(witness.prompt_ids) - 1 :].detach() - own)
    rms = [float(torch.cat(each).square().mean().sqrt()) for each in (folder, run)]
    # Both round as often; how, differs by more than a tenth.
    assert rms[0] < 1.25 * rms[1]


def test_a_mind_below_what_rounding_may_do_is_missed_where_it_is_left_out(tmp_path: Path) -> None:
    policy = Tiny(tmp_path / "base", "llama", final_mu=False, width=64, dtype="bfloat16")
    with torch.no_grad():
        policy.policy.population.mu *= 0.03
    found = policy.evidence()
    proof = compare(FORMS["plain"].reopen(policy.export("plain", tmp_path / "whole"), torch.bfloat16).eval(), found)
    assert proof.moved < ROUNDING[torch.bfloat16] * proof.size
    network = policy.network()
    plain.write(network, policy.lora, {}, tmp_path / "bare")
    with pytest.raises(ProofError, match="the folder lacks the mind"):
        compare(plain.reopen(tmp_path / "bare", torch.bfloat16).eval(), found)


@pytest.mark.parametrize("family", ["gemma3", "qwen3"])
def test_a_folder_with_code_of_its_own_does_not_open_without_it(family: str, tiny: MakeTiny, tmp_path: Path) -> None:
    policy = tiny(family)
    folder = policy.export("code", tmp_path / "out")
    for kind in (transformers.AutoModelForCausalLM, transformers.AutoModel, transformers.AutoConfig):
        with pytest.raises(ValueError, match="trust_remote_code"):
            kind.from_pretrained(folder, trust_remote_code=False)
    # Under the family's own name it would open as the family's own class, without the mind and without an error.
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == f"minds-{policy.network().config.model_type}"
    lie = config | {"model_type": policy.network().config.model_type}
    (folder / "config.json").write_text(json.dumps(lie))
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    with pytest.raises(ProofError):
        compare(network.eval(), policy.evidence())


def test_a_folder_with_code_is_read_here_as_data(tiny: MakeTiny, tmp_path: Path) -> None:
    policy = tiny("gemma3")
    folder = policy.export("code", tmp_path / "out")
    (folder / "modeling_minds.py").write_text("raise RuntimeError('run')")
    compare(load_model(str(folder), "cpu", "float32").network, policy.evidence())
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    del tensors["model.norm.mind"]
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UsageError, match="no offset for the norm norm; export it anew"):
        load_model(str(folder), "cpu", "float32")


def test_a_bias_of_the_head_would_be_dropped_and_is_never_written(tiny: MakeTiny, tmp_path: Path) -> None:
    policy = tiny("llama")
    with pytest.raises(NoFormError, match=r"lm_head, which reads model\.norm, has no bias .*final_mu = false"):
        policy.export("plain", tmp_path / "out")
    # What opens where the bias of the head is written all the same.
    offsets = offsets_of(policy.policy.population, MEAN)
    head = offsets.pop("model.norm")
    network = policy.network()
    FORMS["plain"].write(network, policy.lora, offsets, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors["lm_head.bias"] = tensors["model.embed_tokens.weight"] @ head
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    opened = FORMS["plain"].reopen(tmp_path / "out", torch.float32)
    assert opened.lm_head.bias is None
    with pytest.raises(ProofError):
        compare(opened, policy.evidence())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_the_adapter_of_a_checkpoint_alone_is_another_model(tiny: MakeTiny, tmp_path: Path) -> None:
    policy = tiny("llama")
    policy.policy.adapter.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    opened = peft.PeftModel.from_pretrained(policy.network(), tmp_path / "adapter").eval()
    with pytest.raises(ProofError, match="the mind moves them by"):
        compare(opened, policy.evidence())


def test_no_folder_says_where_it_was_made(tiny: MakeTiny, tmp_path: Path) -> None:
    policy = tiny("phi3", final_mu=False)
    for form in ("plain", "code"):
        folder = policy.export(form, tmp_path / form)
        texts = [file.read_text() for file in folder.iterdir() if file.suffix in (".json", ".py")]
        assert not [text for text in texts if str(policy.base.parent) in text or str(tmp_path) in text]


@pytest.mark.parametrize(
    "options", [{"level": "token"}, {"scope": "completion"}], ids=lambda options: next(iter(options))
)
def test_a_mind_that_is_not_one_model_is_refused(options: dict[str, str]) -> None:
    population = tiny_policy(population=norm_noise(0.3, **options)).population
    assert offsets_of(population, MEAN)
    with pytest.raises(UsageError, match="leave --mind out"):
        offsets_of(population, Mind(11))


def test_minds_that_are_no_offsets_are_refused() -> None:
    class Other(Population):
        attach = restart = embody = kl_to_prior = None  # type: ignore[assignment]

    with pytest.raises(UsageError, match="minds of Other are no offsets"):
        offsets_of(Other.__new__(Other), MEAN)


def test_a_norm_that_adds_nothing_is_left_out() -> None:
    policy = tiny_policy(population=norm_noise(0.3))
    sites = policy.population.sites
    with torch.no_grad():
        policy.population.mu[final_site(sites)] = 0
    assert list(offsets_of(policy.population, MEAN)) == list(sites[:-1])
    assert list(offsets_of(policy.population, Mind(11))) == list(sites)


def test_readers_of_a_norm_are_found_and_what_is_no_linear_layer_is_named() -> None:
    network = tiny_network("gemma3")
    readers, others = linear_readers(network, [name for name, _ in norm_sites(network)])
    assert readers["model.layers.1.input_layernorm"] == tuple(f"model.layers.1.self_attn.{name}_proj" for name in "qkv")
    assert readers["model.norm"] == ("lm_head",)
    assert others == {
        f"model.layers.{layer}.{name}_layernorm": "add"
        for layer in (0, 1)
        for name in ("post_attention", "post_feedforward")
    }


def test_experts_read_a_norm_by_more_than_linear_layers() -> None:
    config = transformers.MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    network = transformers.AutoModelForCausalLM.from_config(config).eval()
    readers, others = linear_readers(network, [name for name, _ in norm_sites(network)])
    assert set(others) == {"model.layers.0.post_attention_layernorm"}
    assert readers["model.layers.0.input_layernorm"]


SHAPE: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + len(ALPHABET),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
GATED = {**SHAPE, "intermediate_size": 32, "num_key_value_heads": 2, "initializer_range": 0.4}
OTHERS = {
    "mixtral": (lambda: transformers.MixtralConfig(**GATED, num_local_experts=4), "code"),
    "qwen3_moe": (
        lambda: transformers.Qwen3MoeConfig(**GATED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
        "code",
    ),
    "granite": (lambda: transformers.GraniteConfig(**GATED), "plain adapter code"),
    "smollm3": (lambda: transformers.SmolLM3Config(**GATED), "plain adapter code"),
    "cohere": (lambda: transformers.CohereConfig(**GATED), "adapter code"),
    "olmo2": (lambda: transformers.Olmo2Config(**GATED), "code"),
    "phi": (lambda: transformers.PhiConfig(**GATED), "plain adapter code"),
    "opt": (lambda: transformers.OPTConfig(**SHAPE, ffn_dim=32, word_embed_proj_dim=16), "plain adapter code"),
}
"""Families that nothing in the forms is written for → forms that hold a mean mind without mu of the final norm."""


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHERS)
def test_other_families_are_taken_as_they_are_seen_to_be(family: str, tmp_path: Path) -> None:
    config, forms = OTHERS[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = transformers.AutoModelForCausalLM.from_config(config())
        for parameter in network.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, 1.0, 0.1)
    network.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    policy = Tiny(tmp_path / "base", family, final_mu=False)
    found = policy.evidence()
    held = []
    for form in FORMS:
        try:
            folder = policy.export(form, tmp_path / form)
        except NoFormError:
            continue
        held.append(form)
        compare(FORMS[form].reopen(folder, torch.float32).eval(), found)
    assert " ".join(held) == forms
