r"""Fit latent minds: find what each bit of a code must add for codes to decide what the base model leaves open.

The base model answers some problems several times. An encoder reads a code off each completion, in the middle of the
model, where the code then enters, and again behind the last layer; the upper half writes the completion under it.
Nothing of the model changes: the directions W and the encoder are fitted to

    −log p(completion | prompt, code) + max(0, KL(code ‖ uniform) − κ)

which is the loss of the Free Transformer (arXiv 2510.17558, equation 5) for whole sequences. Nobody's labels are needed
or looked at. In use the encoder is gone, and codes are drawn from the uniform prior.

1. Codes are balanced over the completions of one problem: what a code tells must not be the problem, which the model
   reads anyway.
2. κ falls to its value from above: a code that is never free to say anything is never listened to.
3. Some completions are read under a code drawn from the prior: in use all are, and minds are to keep their sense.
4. A fifth of the problems is held out. The step that does best on them counts, and all figures are theirs.
"""

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ttrl_pop import randomness
from ttrl_pop.errors import UsageError
from ttrl_pop.fit.codes import Codes, CompletionEncoder
from ttrl_pop.fit.completions import Completion, Reading, numbered, readings
from ttrl_pop.fit.lower_half import LowerHalf
from ttrl_pop.latent.codes import BIT, beyond_free
from ttrl_pop.latent.layers import EPSILON
from ttrl_pop.model.logprobs import selected_logprobs
from ttrl_pop.model.policy import Policy
from ttrl_pop.population.latent import Latent
from ttrl_pop.types import Group

HELD_OUT = 5
"""One of so many problems is held out."""
BATCH = 32
"""Completions of a step, about."""
MOST_KAPPA = 4.0
"""Bits that are free at most where κ is found: a mind is to set a course, not to write the text."""
SHARE = 0.5
"""Share of what a completion tells that is free where κ is found. Were all of it free, a code could be the text."""
FROM_ABOVE = 4.0
"""κ at the first step, in units of the last."""
FALL = 0.5
"""Share of the steps in which κ falls."""
WARM_UP = 0.05
DECAY = 0.5
"""Shares of the steps over which the learning rate rises from nothing, and at the end falls to it."""
LOUDNESS = 0.1
"""Size of what codes add at the start, at both places together, as a share of the hidden states' at the middle."""
ENCODER_RATE = 0.1
"""Learning rate of the encoder, as a share of the directions', which is in units of the hidden states' size."""
CLIP = 1.0
"""Largest norm of the encoder's gradient."""
CHECKS = 8
"""Looks at the held-out problems."""
DRAWS = 3
"""Codes of the encoder and of the prior under which each held-out completion is read. Both are drawn from the same
uniform numbers: what the encoder has not told is the same code then, and adds no noise to the gap."""
LIVE_BIT = 0.01
"""Bits of KL from which on a bit of the code counts as used."""


@dataclass(frozen=True, slots=True)
class LatentFigures:
    """What codes decide, in bits of a completion on held-out problems."""

    kappa: float
    """Bits of a code that were free."""
    gap_bits: float
    """−log2 p under codes of the prior less that under the encoder's: what codes are worth to the model."""
    kl_bits: float
    """KL of the encoder's codes from the prior. A low one does not show that codes are used: the gap does."""
    live_bits: int
    """Bits of the code that are used."""
    base_bits: float
    """−log2 p of the base model."""
    prior_bits: float
    posterior_bits: float
    """The same under codes of the prior, and of the encoder, who has seen the completion: that the last is below
    `base_bits` proves nothing; that it is not means that codes spoil the model."""
    bound_bits: float
    """The bound of the autoencoder, posterior and KL; beside `base_bits` it shows what codes cost."""
    tokens: float
    """Tokens of a completion."""
    step: int
    """The step that did best."""


def fit_latent(
    policy: Policy,
    groups: Sequence[Group],
    temperature: float,
    token_budget: int,
    seed: int,
    tick: Callable[[int], object] = lambda step: None,
) -> LatentFigures:
    """Fit the policy's latent population on what the base model wrote, and let it begin from there.

    Args:
        groups: completions of the base model for each problem.
        temperature: at which they were written.
        token_budget: most tokens of a forward, if two completions fit.
        tick: is told each step as it begins.

    Raises:
        UsageError: there are too few problems.
    """
    population = policy.population
    assert isinstance(population, Latent)
    written = numbered(groups)
    if len(written) < 2:
        raise UsageError(
            "population latent is fitted on some problems and judged on others: give at least 2 that the model "
            f"answers, got {len(written)}, or name a fit in population.options.fitted (ttrl-pop fit)"
        )
    options = population.options
    order = randomness.stream("fit-held-out", seed).permutation(len(written)).tolist()
    count = max(1, len(written) // HELD_OUT)
    held, learned = ([written[i] for i in sorted(part)] for part in (order[:count], order[count:]))
    fitting = _Fitting(policy, population, temperature, token_budget, seed)
    fitting.begin(learned, held)
    kappa = _kappa(options.kappa, options.level, learned)
    batches = randomness.batches(seed, len(learned), max(1, round(BATCH / len(written[0]))))
    looks = {math.ceil(options.steps * (1 - DECAY * look / CHECKS)) for look in range(CHECKS)}
    best: tuple[float, LatentFigures, Tensor] | None = None
    for step, chosen in zip(range(1, options.steps + 1), batches, strict=False):
        tick(step)
        free = kappa * FROM_ABOVE ** max(0.0, 1 - step / (FALL * options.steps)) * BIT
        fitting.learn([learned[i] for i in chosen], step, free, _rate(step, options.steps) * options.lr)
        if step in looks:
            figures, objective = fitting.judge(held, step, kappa)
            if best is None or objective < best[0]:
                best = objective, figures, population.directions.detach().clone()
    assert best is not None
    _, figures, directions_HPD = best
    population.set_fit(directions_HPD, fitting.size_x, figures.gap_bits)
    return figures


def _kappa(given: float | str, level: str, problems: Sequence[Sequence[Completion]]) -> float:
    """Free bits of a code: what was given, or a share of what the base model's completions, or their tokens, tell."""
    if isinstance(given, float | int):
        return float(given)
    rollouts = [each.rollout for part in problems for each in part]
    told = -math.fsum(logprob for rollout in rollouts for logprob in rollout.logprobs) / BIT
    count = len(rollouts) if level == "sequence" else sum(len(rollout.completion_ids) for rollout in rollouts)
    return min(MOST_KAPPA, SHARE * told / count)


def _rate(step: int, steps: int) -> float:
    """The learning rate of a step, counted from 1, as a share of the highest."""
    return min(1.0, step / (WARM_UP * steps), (1 - (step - 1) / steps) / DECAY)


class _Fitting:
    """Directions and encoder on their way."""

    def __init__(self, policy: Policy, population: Latent, temperature: float, token_budget: int, seed: int) -> None:
        self.policy, self.population = policy, population
        self.temperature, self.token_budget, self.seed = temperature, token_budget, seed
        self.options = population.options
        width = population.directions.shape[-1]
        # Layers draw their first weights from the process's generator: the caller's is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(randomness.seed("fit-weights", seed))
            encoder = CompletionEncoder(width, self.options.encoder_width, self.options.bits)
            self.encoder = encoder.to(population.directions)
            self.first_HPD = torch.randn(population.directions.shape).to(population.directions)
        self.lower = LowerHalf(policy, population)
        self.size_x = 1.0
        self.encoders = list(self.encoder.parameters())
        self.optimizer = torch.optim.Adam(
            [{"params": [population.directions]}, {"params": self.encoders}], betas=(0.9, 0.98)
        )

    @torch.no_grad()
    def begin(self, learned: Sequence[Sequence[Completion]], held: Sequence[Sequence[Completion]]) -> None:
        """Find how large hidden states are at the middle layer, and begin with directions of a share of that."""
        sizes: list[Tensor] = []
        squares_D, count = self.first_HPD.new_zeros(self.first_HPD.shape[-1]), 0
        for reading in readings(learned, self.token_budget, self.policy.device):
            wide_ND = self.lower.computed(reading).to(self.first_HPD.dtype)
            sizes.append(wide_ND.square().mean(-1).sqrt())
            seen_ND = wide_ND[reading.window_BT[reading.real_BT]]
            squares_D += seen_ND.square().sum(0)
            count += len(seen_ND)
        for reading in readings(held, self.token_budget, self.policy.device):
            self.lower.computed(reading)
        # Not their mean: the first token of a text is often a hundred times as large as all others.
        self.size_x = float(torch.cat(sizes).median())
        self.encoder.sizes_D.copy_((squares_D / count).sqrt().clamp(min=EPSILON))
        bits, places, _ = self.first_HPD.shape
        self.population.directions.copy_(self.first_HPD * (LOUDNESS * self.size_x / (bits * places) ** 0.5))

    def learn(self, problems: Sequence[Sequence[Completion]], step: int, free: float, rate: float) -> None:
        """One step, with so many free nats a code."""
        self.optimizer.zero_grad()
        tokens = sum(len(each.rollout.completion_ids) for part in problems for each in part)
        for reading in readings(problems, self.token_budget, self.policy.device):
            # The KL of their codes counts all the same.
            untold = {
                each.number
                for each in reading.completions_B
                if randomness.stream("fit-drop", self.seed, step, each.number).random() < self.options.untold
            }
            codes = self._codes(reading, self.encoder, "fit-bits", step, untold)
            with ExitStack() as stay:
                told = -self._logprobs(reading, codes, stay).sum()
                loss = (told + beyond_free(codes.kl_CH().sum(-1), free).sum()) / tokens
                if not math.isfinite(value := float(loss.detach())):
                    raise ArithmeticError(f"the loss of the fit must be finite, got {value} at step {step}")
                # Nothing but what is fitted gets a gradient.
                loss.backward(inputs=[self.population.directions, *self.encoders])  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.encoders, CLIP)
        directions, encoder = self.optimizer.param_groups
        directions["lr"], encoder["lr"] = rate * self.size_x, rate * ENCODER_RATE
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def judge(self, problems: Sequence[Sequence[Completion]], step: int, kappa: float) -> tuple[LatentFigures, float]:
        """Figures on held-out problems, and the loss there in bits of a completion."""
        prior = posterior = 0.0
        kls: list[Tensor] = []
        for reading in readings(problems, self.token_budget, self.policy.device):
            for draw in range(DRAWS):
                told, drawn = (self._codes(reading, by, "fit-judge", draw) for by in (self.encoder, None))
                posterior -= float(self._logprobs(reading, told).sum()) / DRAWS
                prior -= float(self._logprobs(reading, drawn).sum()) / DRAWS
            kls.append(told.kl_CH())
        rollouts = [each.rollout for part in problems for each in part]
        kl_CH = torch.cat(kls)
        beyond = float(beyond_free(kl_CH.sum(-1), kappa * BIT).sum())
        bits = len(rollouts) * BIT
        figures = LatentFigures(
            kappa=kappa,
            gap_bits=(prior - posterior) / bits,
            kl_bits=float(kl_CH.sum()) / bits,
            live_bits=int((kl_CH.sum(0) / bits > LIVE_BIT).sum()),
            base_bits=-math.fsum(logprob for rollout in rollouts for logprob in rollout.logprobs) / bits,
            prior_bits=prior / bits,
            posterior_bits=posterior / bits,
            bound_bits=(posterior + float(kl_CH.sum())) / bits,
            tokens=sum(len(rollout.completion_ids) for rollout in rollouts) / len(rollouts),
            step=step,
        )
        return figures, (posterior + beyond) / bits

    def _codes(
        self,
        reading: Reading,
        encoder: CompletionEncoder | None,
        purpose: str,
        number: int,
        untold: Collection[int] = (),
    ) -> Codes:
        level, bits = self.options.level, self.options.bits
        return Codes(reading, encoder, level, bits, purpose, self.seed, number, untold=untold)

    def _logprobs(self, reading: Reading, codes: Codes, stay: ExitStack | None = None) -> Float[Tensor, "K"]:
        """log p of each completion token under the codes.

        Args:
            stay: takes over what has to last until the backward pass, where layers are computed again.
        """
        with ExitStack() as own:
            active = stay or own
            active.enter_context(self.policy.as_base())
            active.enter_context(self.population.encoding(codes.signs, self.lower.known(reading)))
            hidden_KD = self.policy.hidden(reading.packed, active).index_select(0, reading.sources_K)
        each_K = torch.arange(len(reading.sources_K), device=hidden_KD.device)
        return selected_logprobs(self.policy.network, hidden_KD, each_K, reading.targets_K, self.temperature)
