"""Log-probabilities of rollouts under a policy, with gradient."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ttrl_pop.kernels.memory import transfer
from ttrl_pop.model.forward import at_temperature, logits, token_logits
from ttrl_pop.model.policy import Policy
from ttrl_pop.packing.pack import Branch, Tree, pack
from ttrl_pop.population.base import Population
from ttrl_pop.types import Mind, Rollout

LOGIT_ROWS = 128
"""Positions whose logits are held at once. With a vocabulary of some 50,000 tokens they take 25 MB, which glibc can
keep for the next ones (`ttrl_pop.kernels.malloc`); the memory of more comes from the system each time."""
LOGITS_ON_GPU = 2**27
"""Logits that a GPU holds at once, where there is room for more and few at a time are slow: 512 MB in float32."""


def logit_rows(network: Any) -> int:
    """Positions whose logits are held at once."""
    weight = network.get_output_embeddings().weight
    return logit_rows_on(weight.device, weight.shape[0])


def logit_rows_on(device: torch.device, vocabulary: int) -> int:
    """Positions whose logits over `vocabulary` tokens are held at once on `device`."""
    return LOGIT_ROWS if device.type == "cpu" else max(LOGIT_ROWS, LOGITS_ON_GPU // vocabulary)


@dataclass(frozen=True, slots=True)
class Grown:
    """Rollouts as trees, ready to be packed."""

    trees: tuple[Tree, ...]
    branch_B: tuple[tuple[int, int], ...]
    """Tree of each rollout, and branch of that tree."""


def grow(rollouts_B: Sequence[Rollout], minds_B: Sequence[Mind] | None, population: Population) -> Grown:
    """A tree for each prompt and those who read it alike. Branches are completions but for their last token, which
    predicts nothing.

    Args:
        minds_B: through which each rollout is read; None for no mind at all (z = 0).
    """
    trees: dict[tuple[tuple[int, ...], Mind | None], list[Branch]] = {}
    branch_B: list[tuple[tuple[tuple[int, ...], Mind | None], int]] = []
    readers: Sequence[Mind | None] = [None] * len(rollouts_B) if minds_B is None else minds_B
    for rollout, mind in zip(rollouts_B, readers, strict=True):
        reader = None if mind is None else population.reader(mind)
        key = (rollout.prompt_ids, reader)
        branches = trees.setdefault(key, [])
        branch_B.append((key, len(branches)))
        branches.append(Branch(rollout.completion_ids[:-1], mind))
    number = {key: index for index, key in enumerate(trees)}
    return Grown(
        tuple(Tree(prompt_ids, reader, tuple(branches)) for (prompt_ids, reader), branches in trees.items()),
        tuple((number[key], branch) for key, branch in branch_B),
    )


def token_logprobs(
    policy: Policy,
    rollouts_B: Sequence[Rollout],
    minds_B: Sequence[Mind] | None,
    temperature: float,
    stay: ExitStack | None = None,
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """log p(completion token) of each rollout at `temperature`, with gradient, and where there is a token.

    Columns beyond a rollout's length are 0 and masked out.

    Args:
        minds_B: through which each rollout is read; None for no mind at all (z = 0).
        stay: as `Policy.hidden` takes it.
    """
    grown = grow(rollouts_B, minds_B, policy.population)
    packed = pack(grown.trees, policy.device)
    # Completions that begin alike have states in common, and the same tokens behind them: each is computed once.
    chosen: dict[int, dict[int, list[int]]] = {}
    lengths = [len(rollout.completion_ids) for rollout in rollouts_B]
    width = max(1, *lengths)
    for row, (rollout, (tree, branch)) in enumerate(zip(rollouts_B, grown.branch_B, strict=True)):
        # A completion without a token has a source none the less.
        for column, (source, token) in enumerate(
            zip(packed.sources(tree, branch), rollout.completion_ids, strict=False)
        ):
            chosen.setdefault(source, {}).setdefault(token, []).append(row * width + column)

    def indices(values: Iterable[int]) -> Int[Tensor, "_"]:
        return transfer([*values], torch.long, policy.device)

    states_K = indices(state for state, tokens in enumerate(chosen.values()) for _ in tokens)
    targets_K = indices(token for tokens in chosen.values() for token in tokens)
    cells = [cells for tokens in chosen.values() for cells in tokens.values()]
    hidden_SD = policy.hidden(packed, stay).index_select(0, indices(chosen))
    logprobs_K = selected_logprobs(policy.network, hidden_SD, states_K, targets_K, temperature)
    # As many as there are tokens: those that several completions share, once for each.
    logprobs_N = logprobs_K.index_select(0, indices(k for k, alike in enumerate(cells) for _ in alike))
    mask_BT = torch.arange(width, device=policy.device) < indices(lengths)[:, None]
    padded = torch.zeros(mask_BT.numel(), dtype=logprobs_N.dtype, device=policy.device)
    padded = padded.index_copy(0, indices(cell for alike in cells for cell in alike), logprobs_N)
    return padded.view(mask_BT.shape), mask_BT


def selected_logprobs(
    network: Any,
    hidden_SD: Float[Tensor, "S D"],
    states_K: Int[Tensor, "K"],
    targets_K: Int[Tensor, "K"],
    temperature: float,
) -> Float[Tensor, "K"]:
    """log softmax(logits / temperature) at `targets_K`, each as the state `states_K` of `hidden_SD` predicts it, in
    float32 or wider. `states_K` is in order, and no state has a target twice.

    The logits of `logit_rows` states exist at once. With gradient, that of each log-probability by its own state is
    computed along with it, so that nothing of the vocabulary's width is kept for the backward pass.
    """
    logprobs: Tensor = _SelectedLogprobs.apply(hidden_SD, states_K, targets_K, network, temperature)  # type: ignore[no-untyped-call]
    return logprobs


class _SelectedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_SD: Tensor, states_K: Tensor, targets_K: Tensor, network: Any, temperature: float
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        logprobs: list[Tensor] = []
        slopes: list[Tensor] = []
        held = logit_rows(network)
        starts = torch.arange(0, max(1, len(hidden_SD)), held)
        ends = torch.searchsorted(states_K, (starts + held).to(states_K.device)).tolist()
        for hidden, first, start, end in zip(
            torch.split(hidden_SD, held), starts.tolist(), [0, *ends[:-1]], ends, strict=True
        ):
            states, targets = states_K[start:end] - first, targets_K[start:end]
            leaf = hidden.detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                wide = logits(network, leaf)
                wide = at_temperature(wide.to(torch.promote_types(wide.dtype, torch.float32)), temperature)
            logp = torch.log_softmax(wide.detach(), dim=-1)
            logprobs.append(logp[states, targets])
            if wanted:
                # d log p_t = (1 − p_t) · d logit_t − Σ p_v · d logit_v over all v but t. With t in the sum, two vectors
                # that are nearly alike where t is likely would be subtracted, in bf16 with nothing left but rounding.
                own = logprobs[-1].detach()
                p_K = own.exp()[:, None]
                of_target = _token_slopes(network, hidden[states], targets, temperature).to(own.dtype)
                (of_rest,) = torch.autograd.grad(
                    wide, leaf, logp.exp_().index_put_((states, targets), own.new_zeros(()))
                )
                of_targets = of_target.new_zeros(hidden.shape).index_add_(0, states, p_K * of_target)
                others = (of_targets[states] - p_K * of_target) + of_rest[states]
                slopes.append((of_target * -own.expm1()[:, None] - others).to(hidden.dtype))
        if wanted:
            ctx.save_for_backward(states_K, torch.cat(slopes))
            ctx.count = len(hidden_SD)
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx: Any, *grads_K: Tensor) -> tuple[Tensor, None, None, None, None]:
        states_K, slopes_KD = ctx.saved_tensors
        # Where completions part, advantages of both signs meet in one state.
        weighted = slopes_KD * grads_K[0][:, None]
        slopes_SD = weighted.new_zeros(ctx.count, slopes_KD.shape[1]).index_add_(0, states_K, weighted)
        return slopes_SD.to(slopes_KD.dtype), None, None, None, None


def _token_slopes(network: Any, hidden_KD: Tensor, targets_K: Tensor, temperature: float) -> Tensor:
    """[K, D]: the gradient of each token's logit by its state."""
    leaf = hidden_KD.detach().requires_grad_()
    with torch.enable_grad():
        wide = token_logits(network, leaf, targets_K)
        wide = at_temperature(wide.to(torch.promote_types(wide.dtype, torch.float32)), temperature)
        (slopes,) = torch.autograd.grad(wide.sum(), leaf)
    return slopes
