"""What a population lacks, found on the problems of a session: the one way into this wing."""

from collections.abc import Callable

from ttrl_pop.errors import UsageError
from ttrl_pop.fit.admission import check_metrics, check_reach
from ttrl_pop.fit.base_rollouts import base_rollouts, looked_at
from ttrl_pop.fit.sigma import MINDS, calibrate
from ttrl_pop.packing.budget import learner_tokens
from ttrl_pop.randomness import OUTSIDE_TRAINING
from ttrl_pop.run.session import Session


def prepare(
    session: Session, notice: Callable[[str], None], phase: Callable[[str, int], object] = lambda text, rollouts: None
) -> dict[str, float]:
    """Find what the session's population lacks, so that its minds can be embodied, and check that they then act.

    Args:
        notice: is told in a line what was found.
        phase: is told what is done to find it, and how many rollouts that writes.

    Returns:
        The figures of what was found, by name; none where nothing was lacking.

    Raises:
        UsageError: it cannot be found, or the population breaks its interface.
    """
    policy = session.policy
    found = _find_lack(session, notice, phase)
    (mind,) = policy.population.spawn(session.config.seed, OUTSIDE_TRAINING, 1)
    check_reach(policy, mind, session.prompts[session.problems[0].id])
    check_metrics(policy.population)
    return found


def _find_lack(
    session: Session, notice: Callable[[str], None], phase: Callable[[str, int], object]
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
            tokens = learner_tokens(session.config.learn.token_budget, session.policy.device)
            found = calibrate(
                session.policy, rollouts, minds, tokens, lambda sigma: phase(f"finding sigma: {sigma:.2g}", 0)
            )
            notice(
                f"sigma = {found.sigma:.4g} (KL {found.kl:.3f} nats per token, "
                f"{found.flips:.1%} of likeliest tokens changed)"
            )
            return {"sigma": found.sigma, "kl": found.kl, "flips": found.flips}
        case "fit":
            raise UsageError(
                f"population {type(population).__name__} must be fitted to the model, and there is no fit for it; "
                "choose another with --population"
            )
