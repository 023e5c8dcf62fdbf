"""Base model + LoRA + population as one trainable thing, and the log-probabilities of rollouts under it.

Rows are laid out with prompts padded on the left, so that every completion of a batch begins in one column. Positions
count from the first real token. Logits are computed for the asked positions only.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jinja2
import peft
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ttrl_pop import streams
from ttrl_pop.config import LoraConfig
from ttrl_pop.errors import UsageError
from ttrl_pop.models import LoadedModel
from ttrl_pop.populations.base import Population
from ttrl_pop.types import Mind, Problem, Rollout


class Policy:
    """What rolls out and what learns. `version` counts the updates that changed it; rollouts carry it."""

    def __init__(
        self, model: LoadedModel, population: Population, lora: LoraConfig | None = None, seed: int = 0
    ) -> None:
        """Attach `population` and, unless `lora` is None, an adapter that starts as the identity.

        Raises:
            UsageError: the adapter's target names fit no module.
        """
        self.tokenizer = model.tokenizer
        self.context_length = model.context_length
        self.eos_ids = model.eos_ids
        self.fingerprint = model.fingerprint
        self.source = model.source
        self.population = population
        self.version = 0
        self.network: Any = model.network
        population.attach(self.network)
        self.adapter: Any = _with_adapter(model.network, lora, seed) if lora else None
        self._wanted_BT: Tensor | None = None
        self.network.get_output_embeddings().register_forward_pre_hook(self._select)

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

    def encode(self, problem: Problem) -> tuple[int, ...]:
        """Token ids of the prompt: text as it stands, with what the tokenizer puts before any text; chat messages by
        the model's chat template, up to where the answer begins.

        Raises:
            UsageError: the prompt is chat and the tokenizer has no chat template, or it has no tokens.
        """
        if isinstance(problem.prompt, str):
            ids = self.tokenizer(problem.prompt)["input_ids"]
        else:
            if not self.tokenizer.chat_template:
                raise UsageError(
                    f"problem {problem.id!r} is a chat prompt, but the model has no chat template; pass --raw "
                    "if its prompt is text, else name an instruct model"
                )
            try:
                text = self.tokenizer.apply_chat_template(
                    list(problem.prompt), tokenize=False, add_generation_prompt=True
                )
            except jinja2.TemplateError as error:
                raise UsageError(
                    f"problem {problem.id!r}: the model's chat template refuses it ({error}); change its messages"
                ) from error
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise UsageError(f"problem {problem.id!r} has an empty prompt; a prompt needs at least one token")
        return tuple(ids)

    @property
    def opens_thoughts(self) -> bool:
        """Whether the chat template ends a prompt inside the thoughts, so that a completion begins with them."""
        if not self.tokenizer.chat_template:
            return False
        try:
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True
            )
        except jinja2.TemplateError:
            # It takes other conversations than this one; `encode` says so where it matters.
            return False
        return bool(text.rstrip().endswith("<think>"))

    def decode(self, completion_ids: Sequence[int]) -> str:
        """Text of a completion, special tokens left out."""
        text: str = self.tokenizer.decode(completion_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def forward(
        self,
        ids_BT: Int[Tensor, "B T"],
        padding_B: Sequence[int],
        minds_B: Sequence[Mind] | None,
        wanted_BT: Bool[Tensor, "B T"] | None = None,
        cache: Any = None,
        past: int = 0,
    ) -> Float[Tensor, "..."]:
        """Logits of a batch.

        Args:
            ids_BT: tokens; the first `padding_B[b]` columns of row b, counted from the start of the cache, are padding.
            minds_B: the mind of each row; None for no mind at all (z = 0).
            wanted_BT: positions whose logits are computed; None for the last column.
            cache: a transformers cache that already holds `past` columns of these rows.

        Returns:
            [N, V] for the N wanted positions in row-major order, or [B, V].
        """
        columns = torch.arange(past, past + ids_BT.shape[1], device=ids_BT.device)
        mask_BT: Tensor | None = None
        positions_BT: Tensor | None = None
        if any(padding_B):
            left_B = torch.tensor(list(padding_B), device=ids_BT.device)
            positions_BT = (columns[None, :] - left_B[:, None]).clamp(min=0)
            seen = torch.arange(past + ids_BT.shape[1], device=ids_BT.device)
            mask_BT = seen[None, :] >= left_B[:, None]
        with self._embodied(minds_B, ids_BT, columns, positions_BT), self._wanting(wanted_BT):
            logits: Tensor = self.network(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                position_ids=positions_BT,
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=1 if wanted_BT is None else 0,
            ).logits
        return logits[:, -1] if wanted_BT is None else logits

    def token_logprobs(
        self, rollouts_B: Sequence[Rollout], minds_B: Sequence[Mind] | None, temperature: float
    ) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """log p(completion token) of each rollout at `temperature`, with gradient, and where there is a token.

        Columns beyond a rollout's length are 0 and masked out.
        """
        layout = lay_out(rollouts_B, self.device)
        logits_NV = self.forward(layout.ids_BT, layout.padding_B, minds_B, layout.wanted_BT)
        logprobs_N = selected_logprobs(logits_NV, layout.targets_N, temperature)
        padded_BT = torch.zeros(layout.mask_BT.shape, dtype=logprobs_N.dtype, device=self.device)
        return padded_BT.masked_scatter(layout.mask_BT, logprobs_N), layout.mask_BT

    @contextmanager
    def _embodied(
        self, minds_B: Sequence[Mind] | None, ids_BT: Tensor, columns: Tensor, positions_BT: Tensor | None
    ) -> Iterator[None]:
        if minds_B is None:
            yield
            return
        places = columns.expand(ids_BT.shape) if positions_BT is None else positions_BT
        with self.population.embody(minds_B, places):
            yield

    @contextmanager
    def _wanting(self, wanted_BT: Tensor | None) -> Iterator[None]:
        self._wanted_BT = wanted_BT
        try:
            yield
        finally:
            self._wanted_BT = None

    def _select(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        # Before the vocabulary projection, the widest product of all: only positions whose logits are used go on.
        if self._wanted_BT is None:
            return None
        return (inputs[0][self._wanted_BT], *inputs[1:])


class Layout:
    """Rollouts as one padded batch: prompt left-padded, then the completion without its last token."""

    __slots__ = ("ids_BT", "mask_BT", "padding_B", "targets_N", "wanted_BT")

    def __init__(
        self, ids_BT: Tensor, padding_B: list[int], wanted_BT: Tensor, mask_BT: Tensor, targets_N: Tensor
    ) -> None:
        self.ids_BT = ids_BT
        self.padding_B = padding_B
        self.wanted_BT = wanted_BT
        self.mask_BT = mask_BT
        self.targets_N = targets_N


def lay_out(rollouts_B: Sequence[Rollout], device: torch.device) -> Layout:
    """Build the batch. `wanted_BT` marks the columns that predict a completion token; `mask_BT` [B, longest
    completion] marks completion tokens; `targets_N` are those tokens, row by row."""
    longest_prompt = max(len(r.prompt_ids) for r in rollouts_B)
    longest = max(1, *(len(r.completion_ids) for r in rollouts_B))
    ids, padding, lengths = [], [], []
    targets: list[int] = []
    for rollout in rollouts_B:
        left = longest_prompt - len(rollout.prompt_ids)
        body = rollout.completion_ids[:-1]
        row = [0] * left + list(rollout.prompt_ids) + list(body)
        ids.append(row + [0] * (longest_prompt + longest - 1 - len(row)))
        padding.append(left)
        lengths.append(len(rollout.completion_ids))
        targets += rollout.completion_ids
    columns = torch.arange(longest)
    mask_BT = columns[None, :] < torch.tensor(lengths)[:, None]
    wanted_BT = torch.zeros(len(ids), longest_prompt + longest - 1, dtype=torch.bool)
    wanted_BT[:, longest_prompt - 1 :] = mask_BT
    return Layout(
        torch.tensor(ids, device=device),
        padding,
        wanted_BT.to(device),
        mask_BT.to(device),
        torch.tensor(targets, device=device, dtype=torch.long),
    )


def selected_logprobs(
    logits_NV: Float[Tensor, "N V"], targets_N: Int[Tensor, "N"], temperature: float
) -> Float[Tensor, "N"]:
    """log softmax(logits / temperature) at `targets_N`, in float32 or wider."""
    wide = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    return -nn.functional.cross_entropy(at_temperature(wide, temperature), targets_N, reduction="none")


def at_temperature(logits: Float[Tensor, "..."], temperature: float) -> Float[Tensor, "..."]:
    """logits / temperature. Temperature 0 (greedy) counts as 1, where a pass over the vocabulary is saved."""
    return logits if temperature in (0.0, 1.0) else logits / temperature


def _with_adapter(network: nn.Module, lora: LoraConfig, seed: int) -> Any:
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    # peft draws A from the global generator: seed it for this draw alone.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft reads an attribute that transformers has renamed, and adjusts itself to GPT-2's transposed layers:
        # nothing that a user could act on.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        torch.manual_seed(streams.seed("lora", seed))
        try:
            return peft.get_peft_model(network, settings)
        except ValueError as error:
            raise UsageError(f"learn.lora.targets {lora.targets!r}: {str(error).splitlines()[0]}") from error
