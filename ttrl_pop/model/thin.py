"""A few layers of a model with made-up weights: as wide as it is, and so as fast a layer, but quickly made and small.

Simplifications:

1. The first layers stand for all of them.
2. The first tokens of the vocabulary stand for all of it.
"""

import copy

import torch
import transformers
from torch import Tensor, nn

from ttrl_pop.model.load import LoadedModel
from ttrl_pop.model.refusals import quiet_transformers

BLOCK = 2**20
"""Random numbers that weights are filled with, again and again."""


def thin(outline: LoadedModel, layers: int, vocabulary: int, device: torch.device) -> LoadedModel:
    """The first `layers` layers, and first `vocabulary` tokens, of a model whose network need hold no numbers, with
    made-up ones on `device`.

    Raises:
        Exception: whatever a family has against fewer layers or tokens.
    """
    quiet_transformers()
    config = copy.deepcopy(outline.network.config)
    text = config.get_text_config()
    total = text.num_hidden_layers
    for key, value in vars(text).items():
        # Settings that say something of each layer.
        if isinstance(value, list | tuple) and len(value) == total:
            setattr(text, key, value[:layers])
    text.num_hidden_layers = layers
    text.vocab_size = vocabulary
    for settings in (config, text):
        # Embeddings refuse a padding token that they do not have.
        if (getattr(settings, "pad_token_id", None) or 0) >= vocabulary:
            settings.pad_token_id = None
    dtype: torch.dtype = next(outline.network.parameters()).dtype
    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    _fill(network, device)
    return LoadedModel(network.eval(), outline.tokenizer, outline.context_length, outline.eos_ids, fingerprint="")


def _fill(network: nn.Module, device: torch.device) -> None:
    """Give every parameter and buffer numbers of a size that no layer makes infinite."""
    block = torch.linspace(-1, 1, BLOCK).sin() * 0.03
    # Weights that are one stay one.
    made: dict[int, nn.Parameter] = {}
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in made:
                made[id(parameter)] = nn.Parameter(_filled(parameter, block, device), requires_grad=False)
            setattr(module, name, made[id(parameter)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, _filled(buffer, block, device))


def _filled(like: Tensor, block: Tensor, device: torch.device) -> Tensor:
    if like.ndim < 2 or not like.is_floating_point():
        return torch.ones(like.shape, dtype=like.dtype, device=device)
    numbers = torch.empty(like.shape, dtype=like.dtype, device=device)
    block = block.to(device, like.dtype)
    for piece in torch.split(numbers.view(-1), BLOCK):
        piece.copy_(block[: len(piece)])
    return numbers
