"""Base model + LoRA + population as one trainable thing, and the log-probabilities of rollouts under it.

A forward takes packed trees (`ttrl_pop.packing.pack`): no padding, a prompt once for all completions in one mind,
logits at the asked tokens only.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import jinja2
import peft
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from ttrl_pop import randomness
from ttrl_pop.config import LoraConfig
from ttrl_pop.errors import UsageError
from ttrl_pop.kernels.install import fuse
from ttrl_pop.kernels.memory import transfer
from ttrl_pop.model.load import LoadedModel
from ttrl_pop.packing import attention
from ttrl_pop.packing.attention import Sizes
from ttrl_pop.packing.pack import Branch, Pack, Tree, pack
from ttrl_pop.population.base import Population
from ttrl_pop.types import Mind, Problem, Rollout

LOGIT_ROWS = 128
"""Positions whose logits are held at once. With a vocabulary of some 50,000 tokens they take 25 MB, which glibc can
keep for the next ones (`ttrl_pop.kernels.malloc`); the memory of more comes from the system each time."""
PACKING_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Largest difference of logits, over their largest size, by which packed rows may miss the model's own."""


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
        self.tokenizer = model.tokenizer
        self.context_length = model.context_length
        self.eos_ids = model.eos_ids
        self.fingerprint = model.fingerprint
        self.source = model.source
        self.population = population
        self.version = 0
        self.network: Any = model.network
        self.cache_bytes_per_token = self._take_over_attention()
        """What the keys and values of one token take, over all layers."""
        population.attach(self.network)
        self.adapter: Any = _with_adapter(model.network, lora, seed) if lora else None
        if any(p.requires_grad for p in self.network.get_output_embeddings().parameters()):
            raise UsageError(
                "learn.lora.targets: the output layer takes no adapter, as log-probabilities are learned through "
                "hidden states alone; leave it out"
            )
        fuse(self.network)

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

    def hidden(self, packed: Pack, stay: ExitStack | None = None) -> Float[Tensor, "N D"]:
        """What the LM head reads, for every token.

        Args:
            stay: takes the minds over, which then stay in the model until it is closed: the backward pass needs them
                where layers are computed again.
        """
        with ExitStack() as own:
            (stay or own).enter_context(self._embodied(packed))
            states: Tensor = self.network.base_model(
                input_ids=packed.ids_N[None],
                position_ids=packed.positions_N[None],
                # Of four dimensions, so that transformers makes none of its own: nobody reads it.
                attention_mask=packed.ids_N.new_zeros(1, 1, 1, 1),
                plan=packed.plan,
                use_cache=False,
            ).last_hidden_state
        return states[0]

    def recompute_layers(self) -> None:
        """From now on keep no activations inside a layer for the backward pass, but compute them again there."""

        def checkpointed(forward: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*arguments, **named)
            return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False, **named)

        for module in self.network.modules():
            if isinstance(module, GradientCheckpointingLayer):
                # transformers' own switch asks for training, which would switch dropout on.
                module.forward = partial(checkpointed, module.forward)

    def logits(self, hidden_KD: Float[Tensor, "K D"]) -> Float[Tensor, "K V"]:
        """Of the next token."""
        logits: Tensor = self.network.get_output_embeddings()(hidden_KD)
        return _scaled_logits(logits, self.network.config.get_text_config())

    def token_logits(self, hidden_KD: Float[Tensor, "K D"], targets_K: Int[Tensor, "K"]) -> Float[Tensor, "K"]:
        """Those of one token for each state."""
        head = self.network.get_output_embeddings()
        logits_K = (hidden_KD * head.weight.index_select(0, targets_K)).sum(-1)
        if head.bias is not None:
            logits_K = logits_K + head.bias.index_select(0, targets_K)
        return _scaled_logits(logits_K, self.network.config.get_text_config())

    def token_logprobs(
        self,
        rollouts_B: Sequence[Rollout],
        minds_B: Sequence[Mind] | None,
        temperature: float,
        stay: ExitStack | None = None,
    ) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """log p(completion token) of each rollout at `temperature`, with gradient, and where there is a token.

        Columns beyond a rollout's length are 0 and masked out. `stay` is that of `hidden`.
        """
        grown = grow(rollouts_B, minds_B, self.population)
        packed = pack(grown.trees, self.device)
        # Completions that begin alike have states in common: their logits are computed once.
        chosen: dict[int, list[tuple[int, int]]] = {}
        lengths = [len(rollout.completion_ids) for rollout in rollouts_B]
        width = max(1, *lengths)
        for row, (rollout, (tree, branch)) in enumerate(zip(rollouts_B, grown.places_B, strict=True)):
            sources = (packed.stems[tree][-1][-1], *chain(*packed.branches[tree][branch]))
            # A completion without a token has a source none the less.
            for column, (source, token) in enumerate(zip(sources, rollout.completion_ids, strict=False)):
                chosen.setdefault(source, []).append((row * width + column, token))

        def indices(values: Iterable[int]) -> Int[Tensor, "_"]:
            return transfer([*values], torch.long, self.device)

        states_K = indices(state for state, tokens in enumerate(chosen.values()) for _ in tokens)
        cells_K = indices(cell for tokens in chosen.values() for cell, _ in tokens)
        targets_K = indices(token for tokens in chosen.values() for _, token in tokens)
        hidden_SD = self.hidden(packed, stay).index_select(0, indices(chosen))
        logprobs_K = selected_logprobs(self, hidden_SD, states_K, targets_K, temperature)
        mask_BT = torch.arange(width, device=self.device) < indices(lengths)[:, None]
        padded = torch.zeros(mask_BT.numel(), dtype=logprobs_K.dtype, device=self.device)
        return padded.index_copy(0, cells_K, logprobs_K).view(mask_BT.shape), mask_BT

    def _take_over_attention(self) -> int:
        """Let plans say who sees whom, once it is known that this gives the model's own logits; the bytes of keys and
        values of a token.

        Raises:
            UsageError: packed rows do not give this model's own logits, as where layers keep a state, or attention has
                terms that a plan does not know.
        """
        kind, config = type(self.network).__name__, self.network.config
        vocabulary = config.get_text_config().vocab_size
        ids = tuple(i * 7919 % vocabulary for i in range(11))
        prompt, branches = ids[:5], (ids[5:7], ids[7:])
        packed = pack([Tree(prompt, None, tuple(Branch(branch, None) for branch in branches))], self.device)
        sizes = Sizes(packed.plan)
        with torch.no_grad():
            if config._attn_implementation == attention.NAME:
                self.network.set_attn_implementation("sdpa")
            rows = [torch.tensor([prompt + branch], device=self.device) for branch in branches]
            own_BV = torch.cat([self.network(input_ids=row, use_cache=False).logits[:, -1] for row in rows])
            self.network.set_attn_implementation(attention.NAME)
            try:
                hidden_ND = self.hidden(replace(packed, plan=sizes))
            except (TypeError, ValueError) as error:
                raise UsageError(f"{kind} cannot be used: it takes no attention but its own ({error})") from error
            packed_BV = self.logits(hidden_ND[[pieces[-1][-1] for pieces in packed.branches[0]]])
        gap = float((packed_BV - own_BV).abs().max() / own_BV.abs().max())
        if not gap <= PACKING_TOLERANCE[own_BV.dtype]:
            raise UsageError(
                f"{kind} cannot be used: its sequences cannot be packed into one row (logits "
                f"differ by {gap:.1g} of their size); name a model with plain causal attention"
            )
        if sizes.windows == {None} and _has_windows(config.get_text_config()):
            raise UsageError(
                f"{kind} cannot be used: it does not say where its sliding windows are; name a "
                "model with plain causal attention"
            )
        return sizes.bytes_per_token

    def _embodied(self, packed: Pack) -> AbstractContextManager[None]:
        if packed.minds_M is None:
            return nullcontext()
        return self.population.embody(packed.minds_M, packed.place_N, packed.positions_N)


@dataclass(frozen=True, slots=True)
class Grown:
    """Rollouts as trees."""

    trees: tuple[Tree, ...]
    places_B: tuple[tuple[int, int], ...]
    """Tree and branch of each rollout."""


def grow(rollouts_B: Sequence[Rollout], minds_B: Sequence[Mind] | None, population: Population) -> Grown:
    """A tree for each prompt and those who read it alike. Branches are completions but for their last token, which
    predicts nothing.

    Args:
        minds_B: through which each rollout is read; None for no mind at all (z = 0).
    """
    trees: dict[tuple[tuple[int, ...], Mind | None], list[Branch]] = {}
    places: list[tuple[tuple[tuple[int, ...], Mind | None], int]] = []
    readers: Sequence[Mind | None] = [None] * len(rollouts_B) if minds_B is None else minds_B
    for rollout, mind in zip(rollouts_B, readers, strict=True):
        reader = None if mind is None else population.reader(mind)
        key = (rollout.prompt_ids, reader)
        branches = trees.setdefault(key, [])
        places.append((key, len(branches)))
        branches.append(Branch(rollout.completion_ids[:-1], mind))
    number = {key: index for index, key in enumerate(trees)}
    return Grown(
        tuple(Tree(prompt_ids, reader, tuple(branches)) for (prompt_ids, reader), branches in trees.items()),
        tuple((number[key], branch) for key, branch in places),
    )


def selected_logprobs(
    policy: Policy,
    hidden_SD: Float[Tensor, "S D"],
    states_K: Int[Tensor, "K"],
    targets_K: Int[Tensor, "K"],
    temperature: float,
) -> Float[Tensor, "K"]:
    """log softmax(logits / temperature) at `targets_K`, each as the state `states_K` of `hidden_SD` predicts it, in
    float32 or wider. `states_K` is in order.

    The logits of `LOGIT_ROWS` states exist at once. With gradient, that of each log-probability by its own state is
    computed along with it, so that nothing of the vocabulary's width is kept for the backward pass.
    """
    logprobs: Tensor = _SelectedLogprobs.apply(hidden_SD, states_K, targets_K, policy, temperature)  # type: ignore[no-untyped-call]
    return logprobs


class _SelectedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_SD: Tensor, states_K: Tensor, targets_K: Tensor, policy: Policy, temperature: float
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        logprobs: list[Tensor] = []
        slopes: list[Tensor] = []
        starts = torch.arange(0, max(1, len(hidden_SD)), LOGIT_ROWS)
        ends = torch.searchsorted(states_K, (starts + LOGIT_ROWS).to(states_K.device)).tolist()
        for hidden, first, start, end in zip(
            torch.split(hidden_SD, LOGIT_ROWS), starts.tolist(), [0, *ends[:-1]], ends, strict=True
        ):
            states, targets = states_K[start:end] - first, targets_K[start:end]
            leaf = hidden.detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                wide = policy.logits(leaf)
                wide = at_temperature(wide.to(torch.promote_types(wide.dtype, torch.float32)), temperature)
            logp = torch.log_softmax(wide.detach(), dim=-1)
            logprobs.append(logp[states, targets])
            if wanted:
                # d log p_t = d logit_t − Σ p · d logits: the sum is the same for all tokens that a state predicts.
                (of_all,) = torch.autograd.grad(wide, leaf, logp.exp_())
                slopes.append(_token_slopes(policy, hidden[states], targets, temperature) - of_all[states])
        if wanted:
            ctx.save_for_backward(states_K, torch.cat(slopes))
            ctx.count = len(hidden_SD)
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx: Any, *grads_K: Tensor) -> tuple[Tensor, None, None, None, None]:
        states_K, slopes_KD = ctx.saved_tensors
        slopes_SD = slopes_KD.new_zeros(ctx.count, slopes_KD.shape[1])
        weighted = (slopes_KD * grads_K[0][:, None]).to(slopes_KD.dtype)
        return slopes_SD.index_add_(0, states_K, weighted), None, None, None, None


def _token_slopes(policy: Policy, hidden_KD: Tensor, targets_K: Tensor, temperature: float) -> Tensor:
    """[K, D]: the gradient of each token's logit by its state."""
    leaf = hidden_KD.detach().requires_grad_()
    with torch.enable_grad():
        wide = policy.token_logits(leaf, targets_K)
        wide = at_temperature(wide.to(torch.promote_types(wide.dtype, torch.float32)), temperature)
        (slopes,) = torch.autograd.grad(wide.sum(), leaf)
    return slopes


def _has_windows(config: Any) -> bool:
    """Whether some layers see a part of the sequence only."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return any("sliding" in kind or "chunked" in kind for kind in kinds)
    chunk = getattr(config, "attention_chunk_size", None)
    return bool(chunk or (getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)))


def _scaled_logits(logits: Tensor, config: Any) -> Tensor:
    """What some families do behind their LM head."""
    scale = getattr(config, "logit_scale", None)
    if scale is not None:
        logits = logits * scale
    divisor = getattr(config, "logits_scaling", None)
    if divisor is not None:
        logits = logits / divisor
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


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
        torch.manual_seed(randomness.seed("lora", seed))
        try:
            return peft.get_peft_model(network, settings)
        except ValueError as error:
            raise UsageError(f"learn.lora.targets {lora.targets!r}: {str(error).splitlines()[0]}") from error
