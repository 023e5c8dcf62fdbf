"""The form `adapter`: a PEFT adapter with biases in its linear layers (`lora_bias`), beside the untouched base model.

A layer behind a norm gets (W + s B A) z / s as its bias, which peft multiplies by s = alpha / r: exact wherever linear
layers alone read a norm, the LM head among them. peft cannot merge such an adapter into layers without biases, and vLLM
does not read it.
"""

import json
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import nn

from ttrl_pop.export.readers import linear_readers
from ttrl_pop.export.trained import Lora, NoFormError, Offsets, adapted, matvec
from ttrl_pop.model.minded import is_minded

LOADING = "peft.AutoPeftModelForCausalLM.from_pretrained(FOLDER)"


def check(network: Any, offsets: Offsets) -> None:
    """Check that transformers opens the base model, and that linear layers alone read the norms.

    Raises:
        NoFormError: it does not, or something else does.
    """
    if is_minded(network):
        raise NoFormError(
            "adapter: its base would be a folder with a mind, which transformers does not open by itself; pass "
            "--to plain or --to code"
        )
    readers, others = linear_readers(network, offsets)
    for site in offsets:
        if site in others or not readers[site]:
            raise NoFormError(
                f"adapter: {site} is read by what takes no adapter with a bias ({others.get(site, 'nothing seen')})"
            )


@torch.no_grad()
def write(network: Any, lora: Lora | None, offsets: Offsets, folder: Path) -> None:
    """Write the folder. The network is used up.

    Raises:
        NoFormError: there is neither an adapter nor an offset.
    """
    readers, _ = linear_readers(network, offsets)
    behind = {name: site for site in offsets for name in readers[site]}
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    source = network.config._name_or_path
    matrices: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    deltas: dict[str, torch.Tensor] = {}
    scale, rank = 1.0, 1
    if lora is not None:
        rank, scale = lora.settings.rank, lora.settings.alpha / lora.settings.rank
        wrapped = adapted(network, lora)
        for name, module in wrapped.base_model.model.named_modules():
            if isinstance(module, peft.tuners.lora.Linear):
                if name not in layers:
                    raise NoFormError(f"adapter: {name} is no plain linear layer, and takes no bias")
                matrices[name] = module.lora_A["default"].weight, module.lora_B["default"].weight
                deltas[name] = module.get_delta_weight("default")
        network = wrapped.unload()
    targets = {*matrices, *behind}
    if not targets:
        raise NoFormError("adapter: the run has neither an adapter nor offsets")
    alone = dict.fromkeys(targets - matrices.keys(), 1)
    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=rank * scale if lora is None else lora.settings.alpha,
        lora_bias=bool(behind),
        target_modules=_names(targets, layers),
        rank_pattern=alone,
        alpha_pattern=alone,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # That layers without a bias cannot be merged, and that an adapted head is not the embedding any more.
        warnings.simplefilter("ignore")
        made = peft.get_peft_model(network, settings)
    for name, module in made.base_model.model.named_modules():
        if not isinstance(module, peft.tuners.lora.Linear):
            continue
        first, second = module.lora_A["default"], module.lora_B["default"]
        if name in matrices:
            first.weight.copy_(matrices[name][0])
            second.weight.copy_(matrices[name][1])
        else:
            first.weight.zero_()
        if name in behind:
            weight = module.base_layer.weight
            whole = weight.double() + deltas[name].double() if name in deltas else weight
            second.bias.copy_(matvec(whole, offsets[behind[name]]) / module.scaling["default"])
    made.peft_config["default"].base_model_name_or_path = source
    with warnings.catch_warnings():
        # It takes biases for what is left of matrices that were not gathered.
        warnings.filterwarnings("ignore", message="Adapter 'default': .* invalid shape")
        made.save_pretrained(folder, save_embedding_layers=False)
    config = folder / "adapter_config.json"
    row = json.loads(config.read_text())
    row["target_modules"] = sorted(row["target_modules"])
    config.write_text(json.dumps(row, indent=2, sort_keys=True) + "\n")


def reopen(folder: Path, dtype: torch.dtype) -> Any:
    """The folder on its base model, as whoever has transformers and peft opens it."""
    settings = json.loads((folder / "adapter_config.json").read_text())
    base = transformers.AutoModelForCausalLM.from_pretrained(
        settings["base_model_name_or_path"], dtype=dtype, trust_remote_code=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(base, folder)


def _names(targets: Collection[str], layers: Collection[str]) -> list[str]:
    """The layers by their last names, where these name no other layer, else by their whole names."""
    leaves = {name.rpartition(".")[2] for name in targets}
    named = {name for name in layers if name.rpartition(".")[2] in leaves}
    return sorted(leaves if named == set(targets) else targets)
