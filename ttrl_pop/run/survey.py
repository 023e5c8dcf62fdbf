"""Every mind answers every problem once more, with the policy as it is: final answers, and `ttrl-pop eval`."""

from collections.abc import Iterator, Sequence

from ttrl_pop.population.base import MEAN
from ttrl_pop.randomness import OUTSIDE_TRAINING
from ttrl_pop.report.measures import Measures, ks_up_to, measure
from ttrl_pop.run.session import Session
from ttrl_pop.sample.backend import Weights
from ttrl_pop.types import Metrics, Mind, Tally

CHUNK = 64
"""Problems whose rollouts are held at once."""


def survey(session: Session, noise: bool = True, weights: Weights = "policy") -> Iterator[Tally]:
    """Yield a tally for every problem, in the order of the input. Without `noise` the mean mind writes all rollouts."""
    config, problems = session.config, session.problems
    minds: tuple[Mind, ...] = (MEAN,)
    samples = config.group_size
    if noise:
        minds = session.policy.population.spawn(config.seed, OUTSIDE_TRAINING, config.population.minds)
        samples = config.population.samples_per_mind
    for start in range(0, len(problems), CHUNK):
        part = problems[start : start + CHUNK]
        groups = session.sample(part, minds, samples, OUTSIDE_TRAINING, weights=weights)
        waiting: dict[int, Tally] = {}
        expected = part[0].index
        for tally in session.tallies(groups):
            waiting[tally.group.problem.index] = tally
            while expected in waiting:
                yield waiting.pop(expected)
                expected += 1


def held_out(held: Session) -> Metrics:
    """Figures of the problems held out, as the policy is; of gold None where there is none."""
    found = summarise(held, list(survey(held))).values
    names = ("agreement", "answer_entropy", "abstained", "mean_length", "truncated", "label_accuracy")
    figures = {f"holdout/{name}": found[name] for name in names}
    return {**figures, "holdout/accuracy": found[f"avg@{held.config.group_size}"]}


def summarise(session: Session, tallies: Sequence[Tally]) -> Measures:
    """avg@n, pass@k and maj@k at the powers of two up to the group size and at that, and the label-free measures."""
    ks = ks_up_to(session.config.group_size)
    return measure(tallies, session.gold, session.grader.same, ks, session.config.seed)
