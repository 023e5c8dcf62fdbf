"""What the codes of a trained model carry, in figures: places and noise of texts that share a code, and that do not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ttrl_pop.latent.codes import BIT, draw_bits, kl_to_uniform
from ttrl_pop.latent.free_transformer import FreeTransformer, cross_entropy
from ttrl_pop.letters import task
from ttrl_pop.randomness import stream

NEAR = 1
"""Farthest that two places of runs lie apart and still count as the same."""
DEAD = 0.2
"""Bits a text below which the gap between prior and posterior counts as nothing: the code is not used."""
LIVE_BIT = 0.01
"""Bits that a bit of the code must cost on average to be alive."""
PREDICTED = task.PROMPT + task.BODY - 1
"""Tokens of a text that are predicted."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What texts of the task cost a model, in nats a token, and what its codes do."""

    posterior: float
    """Cross-entropy under codes of the encoder, which has seen the text: never to be compared with another model's."""
    prior: float
    """Cross-entropy under uniform codes, as in generation."""
    kl: float
    """KL of the codes from uniform ones, a token."""
    marginal_kl: float
    """KL of the *mean* code of each position from a uniform one, a token: spent on bits that say nothing."""
    live_bits: int

    @property
    def gap_bits(self) -> float:
        """Bits a text by which the encoder's codes help over uniform ones: what is really used."""
        return (self.prior - self.posterior) * PREDICTED / BIT

    @property
    def is_dead(self) -> bool:
        return self.gap_bits < DEAD


@dataclass(frozen=True, slots=True)
class Agreement:
    """What generated texts have in common; `same` is of pairs that share their codes, `other` of pairs that do not."""

    well_formed: float
    """Share of texts that are of the task."""
    noise: float
    """Share of `!` in the body; 1/16 in the task."""
    near_same: float
    near_other: float
    """Share of pairs whose runs begin at most one apart, of pairs that both have a letter."""
    correlation_same: float
    correlation_other: float
    """Correlation of `!` at the same place, where neither text has a letter."""


@torch.no_grad()
def costs(model: FreeTransformer, texts: int, seed: int) -> Costs:
    """Measure a model on fresh texts of the task."""
    random = stream("letters", "costs", seed)
    tokens_BT = torch.from_numpy(task.texts(texts, random))
    states_BTD = model.lower(tokens_BT)
    logits_BTH = model.encode(states_BTD)

    def entropy(bits_BTH: Tensor) -> float:
        return float(cross_entropy(model.upper(states_BTD, model.code_map(logits_BTH, bits_BTH)), tokens_BT))

    # The last token predicts nothing; its code does nothing.
    kl_BTH = kl_to_uniform(logits_BTH[:, :-1])
    mean_TH = torch.sigmoid(logits_BTH[:, :-1].double()).mean(0)
    return Costs(
        posterior=entropy(draw_bits(logits_BTH, _uniforms(random, logits_BTH.shape))),
        prior=entropy((_uniforms(random, logits_BTH.shape) < 0.5).float()),
        kl=float(kl_BTH.sum(-1).mean()),
        # A bit that is the same in all texts has no logit.
        marginal_kl=float(kl_to_uniform(torch.logit(mean_TH, eps=1e-12)).sum(-1).mean()),
        live_bits=int((kl_BTH.mean((0, 1)) > LIVE_BIT * BIT).sum()),
    )


def generate(model: FreeTransformer, codes: int, each: int, temperature: float, seed: int) -> task.Tokens:
    """Texts (codes · each, 66): `each` in a row share their codes and their letter."""
    random = stream("letters", "codes", seed)
    generator = torch.Generator().manual_seed(seed)
    bits_CTH = random.random((codes, task.PROMPT + task.BODY, model.shape.bits)) < 0.5
    letters_C = random.integers(len(task.LETTERS), size=codes)
    found = model.generate(
        torch.from_numpy(task.prompts(letters_C).repeat(each, 0)),
        torch.from_numpy(bits_CTH.repeat(each, 0)).float(),
        temperature,
        generator,
    )
    return found.numpy()


def agreement(texts_BT: task.Tokens, each: int) -> Agreement:
    """Compare generated texts, of which `each` in a row share their codes."""
    parsed = [task.parse(text) for text in texts_BT]
    place_B = np.array([-1 if found.place is None else found.place for found in parsed])
    body_BT = texts_BT[:, task.PROMPT :]
    noise_BT = body_BT == task.NOISE
    open_BT = noise_BT | (body_BT == task.BLANK)
    first, second = np.triu_indices(len(texts_BT), 1)
    same = first // each == second // each
    near: list[float] = []
    correlation: list[float] = []
    for pairs in (same, ~same):
        a, b = first[pairs], second[pairs]
        placed = (place_B[a] >= 0) & (place_B[b] >= 0)
        near.append(_mean(np.abs(place_B[a] - place_B[b])[placed] <= NEAR))
        both = open_BT[a] & open_BT[b]
        correlation.append(_correlation(noise_BT[a][both], noise_BT[b][both]))
    return Agreement(
        well_formed=_mean([found.is_well_formed for found in parsed]),
        noise=_mean(noise_BT),
        near_same=near[0],
        near_other=near[1],
        correlation_same=correlation[0],
        correlation_other=correlation[1],
    )


def _uniforms(random: np.random.Generator, shape: Sequence[int]) -> Tensor:
    return torch.from_numpy(random.random(tuple(shape), dtype=np.float32))


def _mean(values: npt.ArrayLike) -> float:
    found = np.asarray(values, dtype=float)
    return float(found.mean()) if found.size else 0.0


def _correlation(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """Correlation of two binary rows; 0 where one of them is constant."""
    if a.all() or b.all() or not a.any() or not b.any():
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
