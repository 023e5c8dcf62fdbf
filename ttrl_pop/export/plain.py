"""The form `plain`: a folder of a class that transformers and vLLM know, in which the mind is biases.

A linear layer behind a norm computes W (Norm(x) + z) + b = W Norm(x) + (b + W z): where linear layers alone read a norm
and have a bias, its offset goes into their biases; where the norm itself has one, it goes there. So all norms fold in
families with biased LayerNorms (GPT-2, NeoX, Phi, OPT, …), and all but the one before the LM head in those whose
linear layers can have biases: Llama's kind by its own switches, Qwen2's, Mistral's and Phi-3's when they are written as
Llama. The head of these has no bias, and needs none unless a run had `population.options.final_mu = true`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from ttrl_pop.export.readers import linear_readers
from ttrl_pop.export.trained import Lora, NoFormError, Offsets, matvec, merged

SWITCHES = ("attention_bias", "mlp_bias")
"""Settings by which some families have biases in their linear layers."""

LOADING = "AutoModelForCausalLM.from_pretrained(FOLDER)"


def check(network: Any, offsets: Offsets) -> None:
    """Check that the mind folds into biases of a class that transformers knows.

    Raises:
        NoFormError: it does not; says at which norm.
    """
    _target(network, _biased(network, offsets))


def write(network: Any, lora: Lora | None, offsets: Offsets, folder: Path) -> None:
    """Write the folder. The network is used up."""
    folded(network, lora, offsets).save_pretrained(folder)


def reopen(folder: Path, dtype: torch.dtype) -> Any:
    """The folder as whoever has transformers alone opens it."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False)


@torch.no_grad()
def folded(network: Any, lora: Lora | None, offsets: Offsets) -> Any:
    """A plain model that is this mind; it takes the network's weights over.

    Raises:
        NoFormError: the mind does not fold.
    """
    readers = _biased(network, offsets)
    target, converted = _target(network, readers)
    network = merged(network, lora)
    for site, offset in offsets.items():
        norm = network.get_submodule(site)
        if (own := getattr(norm, "bias", None)) is not None:
            own.copy_(own.double() + offset.to(own.device, torch.float64))
    tensors: dict[str, Tensor] = dict(network.state_dict())
    for name, site in readers.items():
        layer = network.get_submodule(name)
        bias = matvec(layer.weight, offsets[site])
        bias += 0 if layer.bias is None else layer.bias.detach().to("cpu", torch.float64)
        tensors[f"{name}.bias"] = bias.to(layer.weight.device, layer.weight.dtype)
    tensors = converted(tensors)
    # Biases that the class has and that nothing folds into.
    for name, parameter in target.state_dict().items():
        if name.endswith(".bias") and name not in tensors:
            tensors[name] = torch.zeros(parameter.shape, dtype=parameter.dtype, device=network.device)
    made = type(target)(target.config).to(network.dtype).to(network.device)
    made.load_state_dict(tensors, strict=True)
    made.generation_config = network.generation_config
    return made.eval().requires_grad_(False)


def _biased(network: Any, offsets: Offsets) -> dict[str, str]:
    """The norm whose offset each linear layer takes into its bias; norms with a bias of their own need none.

    Raises:
        NoFormError: something else than a linear layer reads a norm.
    """
    sites = [site for site in offsets if getattr(network.get_submodule(site), "bias", None) is None]
    readers, others = linear_readers(network, sites) if sites else ({}, {})
    for site in sites:
        if site in others or not readers[site]:
            raise NoFormError(
                f"plain: {site} is read by what has no bias ({others.get(site, 'nothing that was seen')}), so its "
                "offset folds into no weight"
            )
    return {name: site for site in sites for name in readers[site]}


def _target(network: Any, readers: Mapping[str, str]) -> tuple[Any, Callable[[dict[str, Tensor]], dict[str, Tensor]]]:
    """A model of the class that is written, without weights, and how tensors get its names.

    Raises:
        NoFormError: no class of transformers has all biases that are needed.
    """
    lacking: list[str] = []
    for config, converted in _configs(network.config):
        with torch.device("meta"):
            target = transformers.AutoModelForCausalLM.from_config(config)
        needed = converted({f"{name}.bias": torch.empty(0) for name in readers})
        lacking = [name for name in needed if name not in dict(target.named_parameters())]
        if not lacking:
            return target, converted
    layer = lacking[0].removesuffix(".bias")
    site = readers.get(layer, layer)
    hint = "; train with population.options.final_mu = false" if layer == "lm_head" else ""
    raise NoFormError(f"plain: {layer}, which reads {site}, has no bias in any class that could be written{hint}")


def _configs(config: Any) -> list[tuple[Any, Callable[[dict[str, Tensor]], dict[str, Tensor]]]]:
    """Configurations under which a network may be written, the nearest first, and how its tensors are named there."""
    found: list[tuple[Any, Callable[[dict[str, Tensor]], dict[str, Tensor]]]] = [(config, dict)]
    if any(getattr(config, switch, None) is False for switch in SWITCHES):
        own = type(config).from_dict(config.to_dict())
        for switch in SWITCHES:
            if hasattr(own, switch):
                setattr(own, switch, True)
        found.append((own, dict))
    if config.model_type in ("qwen2", "mistral", "phi3") and _is_llama_but_for_its_name(config):
        found.append((_llama(config), _split if config.model_type == "phi3" else dict))
    return found


def _is_llama_but_for_its_name(config: Any) -> bool:
    """Whether a Qwen2, Mistral or Phi-3 sees the whole sequence by plain rotary positions, as Llama does."""
    rope = config.rope_parameters or {}
    windows = "sliding_attention" in (getattr(config, "layer_types", None) or ()) or (
        config.sliding_window is not None and getattr(config, "use_sliding_window", True)
    )
    return not windows and rope.get("rope_type") != "longrope" and rope.get("partial_rotary_factor", 1) in (1, None)


def _llama(config: Any) -> Any:
    names = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
        *("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings", "rope_parameters"),
    )
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return transformers.LlamaConfig(
        **{name: getattr(config, name) for name in names},
        head_dim=head_dim,
        attention_bias=True,
        mlp_bias=True,
    )


def _split(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Phi-3's fused matrices and biases as those of Llama.

    An empty bias stands for one that is asked about.
    """
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        *_, layer, kind = ["", *name.split(".")]
        if layer == "qkv_proj":
            stem = name.removesuffix(f"qkv_proj.{kind}")
            heads = tensors.get(f"{stem}o_proj.weight")
            queries = 0 if heads is None or not len(tensor) else heads.shape[1]
            rest = (len(tensor) - queries) // 2
            parts = torch.split(tensor, [queries, rest, rest])
            split |= {f"{stem}{q}.{kind}": part for q, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True)}
        elif layer == "gate_up_proj":
            stem = name.removesuffix(f"gate_up_proj.{kind}")
            half = len(tensor) // 2
            parts = torch.split(tensor, [half, half])
            split |= {f"{stem}{q}.{kind}": part for q, part in zip(("gate_proj", "up_proj"), parts, strict=True)}
        else:
            split[name] = tensor
    return split
