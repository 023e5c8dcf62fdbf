"""Proof of an export: the folder, opened again, against the run that it is of.

The run's side is what training and rollouts compute (packed rows, hooks); the folder's is transformers' own forward and
`generate`. They may differ by rounding and by nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor

from ttrl_pop.config import SamplingConfig
from ttrl_pop.errors import TtrlPopError
from ttrl_pop.model.policy import Policy
from ttrl_pop.packing.pack import Branch, Tree, pack
from ttrl_pop.sample.backend import Request
from ttrl_pop.sample.hf.backend import HfBackend
from ttrl_pop.types import Mind

PROMPTS = 8
"""Problems that are looked at, at most."""

LONGEST = 32
"""Tokens of each greedy completion."""

ROUNDING = {torch.float64: 2e-5, torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest difference of logits, over their largest size, that rounding explains. Norms of many families compute in
float32 whatever the weights are in."""

SEEN = 0.1
"""Least size of what a mind does to logits, over that of rounding, at which it is told from nothing; root mean squares
over some million logits."""


class ProofError(TtrlPopError, RuntimeError):
    """An exported folder that does not compute what the run does: it is removed, exit code 1."""


@dataclass(frozen=True, slots=True)
class Witness:
    """What the run says to one prompt."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    """The likeliest token each time."""
    logits_KV: Float[Tensor, "K V"]
    """Logits before each completion token, on the CPU."""
    bare_KV: Float[Tensor, "K V"]
    """The same without the mind."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the run says, to be compared with a folder."""

    witnesses: tuple[Witness, ...]
    moved: float
    """Largest change of a logit that the mind itself makes."""
    eos_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Proof:
    """How near an opened folder is to the run."""

    gap: float
    """Largest difference of logits."""
    size: float
    """Largest logit."""
    moved: float
    equal: int
    """Greedy completions that are equal, near ties counted as equal up to where they part."""
    prompts: int
    tokens: int
    """Positions at which logits were compared."""
    dtype: str

    def said(self) -> str:
        """The figures in a line."""
        return (
            f"logits at {self.tokens} places differ by {self.gap:.2g} at most (largest logit {self.size:.3g}; the mind "
            f"moves them by {self.moved:.2g}), {self.equal} of {self.prompts} greedy completions equal, in {self.dtype}"
        )


@torch.no_grad()
def evidence(policy: Policy, mind: Mind, prompts: Sequence[tuple[int, ...]]) -> Evidence:
    """Greedy completions and logits of the run, read and written by `mind`."""
    chosen = [prompts[i * len(prompts) // min(PROMPTS, len(prompts))] for i in range(min(PROMPTS, len(prompts)))]
    room = policy.model.context_length - max(map(len, chosen))
    engine = HfBackend(policy, SamplingConfig(temperature=0, max_new_tokens=max(1, min(LONGEST, room))))
    requests = [Request(ids, mind, ("export", number)) for number, ids in enumerate(chosen)]
    rollouts = dict(engine.rollouts(requests))
    witnesses, moved = [], 0.0
    for number, ids in enumerate(chosen):
        completion = rollouts[number].completion_ids
        own_KV, bare_KV = (_logits(policy, ids, completion, each) for each in (mind, None))
        moved = max(moved, float((own_KV - bare_KV).abs().max()))
        witnesses.append(Witness(ids, completion, own_KV, bare_KV))
    return Evidence(tuple(witnesses), moved, policy.model.eos_ids)


@torch.no_grad()
def compare(network: Any, found: Evidence) -> Proof:
    """How near `network` is to the run.

    Raises:
        ProofError: it is not the same model; the figures are in the message.
    """
    device, dtype = network.device, network.dtype
    gap = size = 0.0
    near = far = apart = 0.0
    texts: list[tuple[Witness, list[int]]] = []
    for witness in found.witnesses:
        ids = torch.tensor([witness.prompt_ids + witness.completion_ids[:-1]], device=device)
        logits_KV = network(input_ids=ids, use_cache=False).logits[0, len(witness.prompt_ids) - 1 :].cpu()
        logits_KV = logits_KV.to(witness.logits_KV.dtype)
        gap = max(gap, float((logits_KV - witness.logits_KV).abs().max()))
        near += _square(logits_KV - witness.logits_KV)
        far += _square(logits_KV - witness.bare_KV)
        apart += _square(witness.logits_KV - witness.bare_KV)
        size = max(size, float(witness.logits_KV.abs().max()))
        texts.append((witness, _greedy(network, witness, found.eos_ids)))
    equal = sum(_as_likely(witness, text, gap) for witness, text in texts)
    tokens = sum(len(witness.completion_ids) for witness, _ in texts)
    name = str(dtype).removeprefix("torch.")
    proof = Proof(gap, size, found.moved, equal, len(texts), tokens, name)
    # NaN is not below anything.
    if not gap <= ROUNDING[dtype] * size or equal < len(texts):
        raise ProofError(f"the folder is another model than the run, and has been removed: {proof.said()}")
    # A mind may move logits by less than rounding may: over all of them it is seen whether it is there.
    if near >= far and apart > SEEN**2 * near:
        raise ProofError(f"the folder lacks the mind, and has been removed: {proof.said()}")
    return proof


def _square(difference_KV: Tensor) -> float:
    """Sum of squares, in float64."""
    return float(difference_KV.double().square().sum())


def _logits(policy: Policy, prompt: tuple[int, ...], completion: tuple[int, ...], mind: Mind | None) -> Tensor:
    """Logits before each completion token, as `mind` reads prompt and completion; None is no mind at all."""
    reader = None if mind is None else policy.population.reader(mind)
    packed = pack([Tree(prompt, reader, (Branch(completion[:-1], mind),))], policy.device)
    hidden_KD = policy.hidden(packed)[torch.tensor([*packed.sources(0, 0)], device=policy.device)]
    return policy.logits(hidden_KD).cpu()


def _greedy(network: Any, witness: Witness, eos_ids: frozenset[int]) -> list[int]:
    ids = torch.tensor([witness.prompt_ids], device=network.device)
    # Not the folder's own settings, among which may be penalties.
    plainly = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=len(witness.completion_ids),
        eos_token_id=sorted(eos_ids) or None,
        pad_token_id=min(eos_ids, default=0),
    )
    written = network.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=plainly)
    return [*map(int, written[0, ids.shape[1] :])]


def _as_likely(witness: Witness, text: Sequence[int], gap: float) -> bool:
    """Whether a greedy completion is the run's, or parts from it where rounding decides which token is likeliest."""
    for place, (own, other) in enumerate(zip(witness.completion_ids, text, strict=False)):
        if own != other:
            row_V = witness.logits_KV[place]
            return bool(row_V[own] - row_V[other] <= 2 * gap)
    return len(text) == len(witness.completion_ids)
