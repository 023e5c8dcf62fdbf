"""Base model + LoRA + population as one trainable thing.

A forward takes packed trees (`ttrl_pop.packing.pack`): no padding, and a prompt once for all completions in one mind.
It ends at the hidden states; logits, which are as wide as the vocabulary, are made where they are asked for.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import peft
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ttrl_pop import randomness
from ttrl_pop.config import LoraConfig
from ttrl_pop.errors import UsageError
from ttrl_pop.kernels import cuda
from ttrl_pop.kernels.install import fuse
from ttrl_pop.model.forward import hidden_states, logits
from ttrl_pop.model.load import LoadedModel
from ttrl_pop.model.probe import probe
from ttrl_pop.packing.attention import Look
from ttrl_pop.packing.pack import Pack
from ttrl_pop.population.base import Population


class Policy:
    """What rolls out and what learns. `version` counts the updates that changed it; rollouts carry it."""

    def __init__(
        self, model: LoadedModel, population: Population, lora: LoraConfig | None = None, seed: int = 0
    ) -> None:
        """Attach `population` and, unless `lora` is None, an adapter that starts as the identity.

        Raises:
            UsageError: the adapter's target names fit no module, or the model is of a kind whose sequences cannot be
                packed.
        """
        if next(model.network.parameters()).device.type == "cuda":
            cuda.quiet()
        self.model = model
        self.network: Any = model.network
        self.population = population
        self.version = 0
        self.cache_bytes_per_token = probe(model.network)
        """What the keys and values of one token take, over all layers."""
        population.attach(self.network)
        self.adapter: Any = with_adapter(model.network, lora, seed) if lora else None
        if any(p.requires_grad for p in self.network.get_output_embeddings().parameters()):
            raise UsageError(
                "learn.lora.targets: the output layer takes no adapter, as log-probabilities are learned through "
                "hidden states alone; leave it out"
            )
        fuse(self.network, Look())
        population.settle(self.network)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.network.parameters()).device
        return device

    @property
    def dtype_name(self) -> str:
        """Type of the base model's weights, as the configuration spells it."""
        return str(next(self.network.parameters()).dtype).removeprefix("torch.")

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters of the adapter by name; empty without one."""
        return {name: p for name, p in self.network.named_parameters() if p.requires_grad}

    def population_parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters of the population by name."""
        return {name: p for name, p in self.population.named_parameters() if p.requires_grad}

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """While active, the adapter is off; outside of `embody` no mind is in the model either."""
        if self.adapter is None:
            yield
        else:
            with self.adapter.disable_adapter():
                yield

    def hidden(self, packed: Pack, stay: ExitStack | None = None) -> Float[Tensor, "N D"]:
        """What the LM head reads, for every token.

        Args:
            stay: takes the minds over, which then stay in the model until it is closed: the backward pass needs them
                where layers are computed again.
        """
        with ExitStack() as own:
            (stay or own).enter_context(self._embodied(packed))
            return hidden_states(self.network, packed)

    def logits(self, hidden_KD: Float[Tensor, "K D"]) -> Float[Tensor, "K V"]:
        """Logits of the next token for each state."""
        return logits(self.network, hidden_KD)

    def _embodied(self, packed: Pack) -> AbstractContextManager[None]:
        if packed.minds_M is None:
            return nullcontext()
        return self.population.embody(packed.minds_M, packed.mind_N, packed.positions_N)


def with_adapter(network: nn.Module, lora: LoraConfig, seed: int) -> Any:
    """The network with LoRA in its linear layers, which starts as the identity."""
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    width = int(network.config.get_text_config().hidden_size)  # type: ignore[operator, union-attr]
    if lora.rank > width:
        raise UsageError(
            f"learn.lora.rank must be at most {width}, the width of this model's hidden states, got {lora.rank}: a "
            "higher one costs memory and adds nothing"
        )
    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    # peft draws A from the global generator: seed it for this draw alone.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft reads an attribute that transformers has renamed, and adjusts itself to GPT-2's transposed layers:
        # nothing that a user could act on.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        # What it derives for experts' fused parameters it looks for among modules too.
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
        torch.manual_seed(randomness.seed("lora", seed))
        # Of a network without numbers none are drawn either.
        outline = next(network.parameters()).is_meta
        try:
            return peft.get_peft_model(network, settings, low_cpu_mem_usage=outline)
        except (ValueError, re.error) as error:
            raise UsageError(f"learn.lora.targets {lora.targets!r}: {str(error).splitlines()[0]}") from error
