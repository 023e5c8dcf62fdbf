"""The form `code`: a folder with a model class of its own, whose norms add the offsets.

For families in which something else than a linear layer reads a norm (Gemma's post-norms, routers of experts). The
folder has a `model_type` of its own, so that opening it without `trust_remote_code` fails: under the family's name it
would open without the offsets, as another model, and with no error. The offset is added inside the norm's `forward`;
vLLM's transformers backend looks at that, and would lose a hook.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from ttrl_pop.export.trained import Lora, NoFormError, Offsets, merged
from ttrl_pop.model.minded import OFFSET, PREFIX, SITES

MODULE = "modeling_minds"

LOADING = "AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)"

SOURCE = '''"""{base} with an offset behind norms: a mind of a population (B-Trans, arXiv 2512.25063)."""

import torch
from torch import nn
from {config_module} import {config}
from {module} import {model}, {base}


class Minds{config}({config}):
    """The settings of {base}, and the names of the norms with an offset (`mind_sites`)."""

    model_type = "{model_type}"


class Minded:
    """A norm that adds an offset to its output, in float32 or wider: rounded before, a small one would be lost."""

    def forward(self, hidden_states):
        wide = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        if isinstance(self, nn.LayerNorm):
            numbers = (None if each is None else each.to(wide.dtype) for each in (self.weight, self.bias))
            output = nn.functional.layer_norm(wide, self.normalized_shape, *numbers, self.eps)
        else:
            output = super().forward(wide)
        return (output + self.mind.to(wide.dtype)).to(hidden_states.dtype)


def add_mind(model, config):
    """Give the norms of a model without head their offsets."""
    for site in config.mind_sites:
        norm = model.get_submodule(site)
        norm.__class__ = type("Minded" + type(norm).__name__, (Minded, type(norm)), {{}})
        norm.mind = nn.Parameter(torch.zeros(config.hidden_size))


class Minds{model}({model}):
    config_class = Minds{config}

    def __init__(self, config):
        super().__init__(config)
        add_mind(self, config)
        self.post_init()


class Minds{base}({base}):
    config_class = Minds{config}

    def __init__(self, config):
        super().__init__(config)
        add_mind(self.base_model, config)
        self.post_init()
'''


def check(network: Any, offsets: Offsets) -> None:
    """Check that a class of its own can be derived from the network's.

    Raises:
        NoFormError: the norms are not all in its part below the head.
    """
    if outside := [site for site in offsets if not site.startswith(f"{network.base_model_prefix}.")]:
        raise NoFormError(f"code: {outside[0]} is no part of {type(network.base_model).__name__}")
    if network.config.get_text_config() is not network.config:
        raise NoFormError(f"code: {type(network).__name__} holds more than a language model")


@torch.no_grad()
def write(network: Any, lora: Lora | None, offsets: Offsets, folder: Path) -> None:
    """Write the folder. The network is used up."""
    network = merged(network, lora)
    dtype = network.dtype
    tensors: dict[str, Tensor] = dict(network.state_dict())
    tensors |= {f"{site}.{OFFSET}": offset.to(network.device, dtype) for site, offset in offsets.items()}
    network.save_pretrained(folder, state_dict=tensors, save_original_format=False)
    kind = {
        "base": type(network).__name__,
        "module": type(network).__module__,
        "model": type(network.base_model).__name__,
        "config": type(network.config).__name__,
        "config_module": type(network.config).__module__,
        "model_type": f"{PREFIX}{network.config.model_type}",
    }
    (folder / f"{MODULE}.py").write_text(SOURCE.format(**kind))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": kind["model_type"],
        "architectures": [f"Minds{kind['base']}"],
        "auto_map": {
            "AutoConfig": f"{MODULE}.Minds{kind['config']}",
            "AutoModel": f"{MODULE}.Minds{kind['model']}",
            "AutoModelForCausalLM": f"{MODULE}.Minds{kind['base']}",
        },
        SITES: [site.removeprefix(f"{network.base_model_prefix}.") for site in offsets],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def reopen(folder: Path, dtype: torch.dtype) -> Any:
    """The folder as whoever trusts its code opens it."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=True)
