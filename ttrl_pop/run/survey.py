"""Every mind answers every problem once more, with the policy as it is: final answers, and `ttrl-pop eval`."""

from collections.abc import Iterator, Sequence

from ttrl_pop.population.base import MEAN
from ttrl_pop.report.measures import Measures, measure
from ttrl_pop.run.session import Session
from ttrl_pop.sample.backend import Weights
from ttrl_pop.sample.sample import sample
from ttrl_pop.types import Mind, Tally

SURVEY_STEP = 0
"""Step number of draws outside training. Two surveys of one run use the same minds and the same random numbers, so
their difference is due to the policy."""
CHUNK = 64
"""Problems whose rollouts are held at once."""


def survey(session: Session, noise: bool = True, weights: Weights = "policy") -> Iterator[Tally]:
    """Yield a tally for every problem, in the order of the input. Without `noise` the mean mind writes all rollouts."""
    config, problems = session.config, session.problems.problems
    minds: tuple[Mind, ...] = (MEAN,)
    samples = config.group_size
    if noise:
        minds = session.policy.population.spawn(config.seed, SURVEY_STEP, config.population.minds)
        samples = config.population.samples_per_mind
    for start in range(0, len(problems), CHUNK):
        part = problems[start : start + CHUNK]
        groups = sample(
            session.backend,
            session.prompts,
            part,
            minds,
            samples,
            config.seed,
            SURVEY_STEP,
            weights=weights,
        )
        waiting: dict[int, Tally] = {}
        expected = part[0].index
        for tally in session.tallies(groups):
            waiting[tally.group.problem.index] = tally
            while expected in waiting:
                yield waiting.pop(expected)
                expected += 1


def summarise(session: Session, tallies: Sequence[Tally]) -> Measures:
    """avg@n, pass@k and maj@k at the powers of two up to the group size, and the label-free measures."""
    size = session.config.group_size
    ks = sorted({2**i for i in range(size.bit_length()) if 2**i <= size} | {size})
    return measure(tallies, session.answers, session.grader.same, ks, session.config.seed)
