"""The four regimes of the letters experiment: how many bits of a code are free decides what it carries.

A text has log2 57 = 5.8 bits of place and 64 · 0.337 = 21.6 bits of noise, and κ free bits a token make 65 κ a text. So
1/64 leaves room for nothing, 1/8 for the place, 1 for place and noise, 8 for the text itself.

Where little is free from the start a code finds no use, or tells half of what it could. So κ comes from above, where
it is found within some hundred steps on every seed: all that a text holds is told then, and as κ falls what tells most
stays. At 1/8 that would be a share of the noise as well, and the place too little: there texts have no noise until κ
has fallen, when no room is left for it. At 1 bits may lean, by which both are told more surely.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from ttrl_pop.latent.codes import BIT
from ttrl_pop.latent.free_transformer import FreeTransformer, Shape
from ttrl_pop.letters import task
from ttrl_pop.randomness import seed as seed_of
from ttrl_pop.randomness import stream

LEARNING_RATE = 4e-3
WARM_UP = 50
"""Steps over which the learning rate rises."""
BATCH = 16
"""Texts of a step: with few of them there are many steps, in which a code is found."""
DECAY_FROM = 0.6
"""Share of the steps after which the learning rate falls, in a line, to `LAST_RATE` of itself."""
LAST_RATE = 0.02
CLIP = 1.0
"""Largest norm of a gradient."""


@dataclass(frozen=True, slots=True)
class Regime:
    """A number of free bits, and the way there."""

    kappa: float
    """Free bits of a token, in the end."""
    steps: int
    first: float | None = None
    """Free bits at the start; None begins with `kappa`."""
    hold: float = 0.0
    """Share of the steps after which the free bits fall."""
    until: float = 0.0
    """Share of the steps at which they have fallen to `kappa`."""
    quiet: float = 0.0
    """Share of the steps in which texts have no noise."""
    places: bool = False
    """Whether the encoder is told positions, as `Shape` has it."""
    lean: float = 0.0
    """How far bits may lean, as `Shape` has it."""

    def after(self, steps: int) -> "Regime":
        """The same regime with another number of steps."""
        return replace(self, steps=steps)

    def free_bits(self, step: int) -> float:
        """Free bits at a step, counted from 1; they fall by a constant factor."""
        if self.first is None:
            return self.kappa
        way = (step / self.steps - self.hold) / (self.until - self.hold)
        return float(self.first * (self.kappa / self.first) ** min(1.0, max(0.0, way)))

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        left = (1 - step / self.steps) / (1 - DECAY_FROM)
        return LEARNING_RATE * min(1.0, step / WARM_UP) * (LAST_RATE + (1 - LAST_RATE) * min(1.0, left))


REGIMES = (
    Regime(1 / 64, steps=600),
    Regime(1 / 8, steps=3000, first=8.0, hold=0.1, until=0.6, quiet=0.6, places=True),
    Regime(1.0, steps=7000, first=8.0, hold=0.05, until=0.6, lean=0.45),
    Regime(8.0, steps=1000),
)
"""One for each row of the paper's figure 4."""


def train(regime: Regime, seed: int) -> Iterator[FreeTransformer]:
    """Train a model in a regime; yields it after every step, the same object. A seed trains it the same again."""
    # Layers draw their first weights from the process's generator: the caller's is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("letters", "weights", seed))
        sizes = Shape(len(task.SIGNS), task.PROMPT + task.BODY, places=regime.places, lean=regime.lean)
        model = FreeTransformer(sizes)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    random = stream("letters", "train", seed)
    for step in range(1, regime.steps + 1):
        noise_rate = task.NOISE_RATE if step > regime.quiet * regime.steps else 0.0
        tokens_BT = torch.from_numpy(task.texts(BATCH, random, noise_rate))
        shape = (*tokens_BT.shape, model.shape.bits)
        uniforms_BTH = torch.from_numpy(random.random(shape, dtype=np.float32))
        loss = model.loss(tokens_BT, uniforms_BTH).total(regime.free_bits(step) * BIT)
        if not math.isfinite(value := float(loss.detach())):
            raise ArithmeticError(f"the loss must be finite, got {value} at step {step} of seed {seed}")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for group in optimizer.param_groups:
            group["lr"] = regime.rate(step)
        optimizer.step()
        yield model
