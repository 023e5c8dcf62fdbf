"""What a population lacks, found on the problems of a session: the one way into this wing."""

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ttrl_pop.errors import DamagedError, UsageError
from ttrl_pop.fit.admission import check_lack, check_metrics, check_reach, check_spawn
from ttrl_pop.fit.base_rollouts import base_groups, base_rollouts, looked_at
from ttrl_pop.fit.kept import keep, load_kept
from ttrl_pop.fit.latent import LatentFigures, fit_latent
from ttrl_pop.fit.sigma import MINDS, calibrate
from ttrl_pop.packing.budget import learner_tokens
from ttrl_pop.population.latent import Latent
from ttrl_pop.randomness import OUTSIDE_TRAINING
from ttrl_pop.run.session import Session

FITTED = 64
"""Problems that codes are fitted on, at most."""

LONGEST_FITTED = 256
"""Tokens of a completion that codes are fitted on, at most."""

PhaseSink = Callable[[str, int], object]
"""Is told what is done, and how many rollouts that writes."""


def prepare(
    session: Session,
    notice: Callable[[str], None],
    phase: PhaseSink = lambda text, rollouts: None,
    kept: Path | None = None,
) -> dict[str, float]:
    """Find what the session's population lacks, so that its minds can be embodied, and check that they then act.

    Args:
        notice: is told in a line what was found.
        phase: is told what is done to find it, and how many rollouts that writes.
        kept: folder in which a fit stays, and from which it is taken where it is there.

    Returns:
        The figures of what was found, by name; none where nothing was lacking.

    Raises:
        UsageError: it cannot be found, or the population breaks its interface.
    """
    policy = session.policy
    check_lack(policy.population)
    check_spawn(policy.population, session.config.seed, max(session.config.population.minds, MINDS))
    found = _find_lack(session, notice, phase, kept)
    mind, *_ = policy.population.spawn(session.config.seed, OUTSIDE_TRAINING, 1)
    check_reach(policy, mind, session.prompts[session.problems[0].id])
    check_metrics(policy.population)
    return found


def fit_codes(session: Session, population: Latent, phase: PhaseSink) -> LatentFigures:
    """Fit latent minds on what the base model writes to the session's problems.

    Raises:
        UsageError: there are too few of them.
    """
    config, options = session.config, population.options
    # Greedy completions are all alike; those of a fit must differ as the model is unsure.
    sampling = config.sampling.model_copy(
        update={
            "max_new_tokens": min(LONGEST_FITTED, config.sampling.max_new_tokens),
            "temperature": config.sampling.temperature or 1.0,
            "top_p": 1.0,
        }
    )
    chosen = looked_at(session.problems, FITTED)
    phase("fitting codes: the base model answers", len(chosen) * options.rollouts)
    groups = base_groups(session, chosen, options.rollouts, sampling, "fit")
    tokens = learner_tokens(config.learn.token_budget, session.policy.device, session.policy.network)
    return fit_latent(
        session.policy,
        groups,
        sampling.temperature,
        tokens,
        config.seed,
        lambda step: phase(f"fitting codes: step {step} of {options.steps}", 0),
    )


def told(figures: LatentFigures, bits: int) -> str:
    """A fit in one line."""
    line = (
        f"codes decide {figures.gap_bits:.2f} bits of a held-out completion, which takes {figures.base_bits:.2f} "
        f"without them, {figures.posterior_bits:.2f} with its own and {figures.prior_bits:.2f} with any "
        f"(KL {figures.kl_bits:.2f}, free {figures.kappa:.2f}; {figures.live_bits} of {bits} bits in use; bound "
        f"{figures.bound_bits:.2f})"
    )
    if figures.posterior_bits < figures.base_bits:
        return line
    return (
        f"{line}; it is no likelier under its own code than without one, so minds may write worse than the base model: "
        "give more problems, or lower population.options.lr"
    )


def shortfall(figures: LatentFigures, least_gap: float) -> str | None:
    """Why minds of this fit are not to be used, and what to try; None where nothing is wrong with it."""
    if least_gap and figures.gap_bits < least_gap:
        return (
            f"no code steers this model on these problems (gap {figures.gap_bits:.2f} bits, "
            f"population.options.least_gap is {least_gap:g}), its minds would be copies; fit longer with "
            "population.options.steps"
        )
    return None


def _find_lack(
    session: Session, notice: Callable[[str], None], phase: PhaseSink, kept: Path | None
) -> dict[str, float]:
    population = session.policy.population
    match population.lacks:
        case None:
            return {}
        case "scale":
            chosen = looked_at(session.problems)
            phase("finding sigma: the base model answers", len(chosen))
            rollouts = base_rollouts(session, chosen)
            minds = population.spawn(session.config.seed, OUTSIDE_TRAINING, MINDS)
            tokens = learner_tokens(session.config.learn.token_budget, session.policy.device, session.policy.network)
            found = calibrate(
                session.policy, rollouts, minds, tokens, lambda sigma: phase(f"finding sigma: {sigma:.2g}", 0)
            )
            notice(
                f"sigma = {found.sigma:.4g} (KL {found.kl:.3f} nats per token, "
                f"{found.flips:.1%} of likeliest tokens changed)"
            )
            return {"sigma": found.sigma, "kl": found.kl, "flips": found.flips}
        case "fit" if isinstance(population, Latent):
            figures = _fit_kept(session, population, notice, phase, kept)
            notice(told(figures, population.options.bits))
            if fault := shortfall(figures, population.options.least_gap):
                raise UsageError(f"population latent: {fault}; use --population norm-noise")
            return asdict(figures)
        case "fit":
            raise UsageError(
                f"population {type(population).__name__} must be fitted to the model, and there is no fit for it; "
                "choose another with --population"
            )


def _fit_kept(
    session: Session, population: Latent, notice: Callable[[str], None], phase: PhaseSink, kept: Path | None
) -> LatentFigures:
    """The fit that is kept, the one that is named, or a new one; it is kept from then on."""
    model, named = session.policy.model.fingerprint, population.options.fitted
    if kept is not None and os.path.lexists(kept):
        try:
            return load_kept(kept, population, model)
        except DamagedError as error:
            notice(f"{error}; it is fitted again")
    figures = load_kept(Path(named), population, model) if named else fit_codes(session, population, phase)
    if kept is not None:
        keep(kept, population, model, figures)
    return figures
