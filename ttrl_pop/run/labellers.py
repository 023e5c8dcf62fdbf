"""Labels elected by others than the minds that learn: the base model, or an average of the policy."""

from collections.abc import Sequence

from ttrl_pop.learn.learner import Learner
from ttrl_pop.population.base import MEAN
from ttrl_pop.randomness import OUTSIDE_TRAINING
from ttrl_pop.run.session import Session
from ttrl_pop.sample.backend import Weights
from ttrl_pop.types import Mind, Problem
from ttrl_pop.vote.rules import Labels
from ttrl_pop.vote.vote import elect


class Labellers:
    """Elect labels for problems where others than the learning minds do so (`vote.labels`)."""

    def __init__(self, session: Session, learner: Learner, known: dict[str, str | None]) -> None:
        """
        Args:
            known: labels of the base model so far; grows.
        """
        self.session = session
        self.learner = learner
        self.known = known

    def rollouts(self, problems: Sequence[Problem]) -> int:
        """How many rollouts `elect` writes for these problems."""
        config = self.session.config
        new = [problem for problem in problems if problem.id not in self.known]
        electing = {"minds": 0, "average": len(problems), "base": len(new)}[config.vote.labels]
        return electing * (config.vote.label_rollouts or config.group_size)

    def elect(self, problems: Sequence[Problem], step: int) -> Labels | None:
        """Labels of these problems by id; None where each group labels itself."""
        kind = self.session.config.vote.labels
        if kind == "minds":
            return None
        if kind == "average":
            return self._vote_of_average(problems, step)
        new = [problem for problem in problems if problem.id not in self.known]
        if new:
            self.known |= self._vote(new, None, OUTSIDE_TRAINING, "base")
        return self.known

    def _vote_of_average(self, problems: Sequence[Problem], step: int) -> dict[str, str | None]:
        backend = self.session.backend
        try:
            with self.learner.trained.averaged():
                backend.refresh()
                return self._vote(problems, MEAN, step, "policy")
        finally:
            # An engine with weights of its own would go on with the average.
            backend.refresh()

    def _vote(
        self, problems: Sequence[Problem], mind: Mind | None, step: int, weights: Weights
    ) -> dict[str, str | None]:
        """The label that `mind` under `weights` elects for each problem."""
        config = self.session.config
        count = config.vote.label_rollouts or config.group_size
        groups = self.session.sample(problems, [mind], count, step, purpose="label", weights=weights)
        return {group.problem.id: elect(group, self.session.rules) for group in groups}
