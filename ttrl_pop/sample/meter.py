"""What an engine has written so far: numbers that grow while it writes, for whoever looks on."""

from dataclasses import dataclass

from ttrl_pop.types import Rollout


@dataclass(slots=True)
class Meter:
    """Rollouts and completion tokens that an engine has written since it began. Displays read it from other threads."""

    rollouts: int = 0
    under_way: int = 0
    """Tokens of rollouts that are not finished, where the engine counts them."""
    finished: int = 0
    """Tokens of finished rollouts."""

    @property
    def tokens(self) -> int:
        """All tokens so far."""
        return self.finished + self.under_way

    def add(self, rollout: Rollout) -> None:
        """Count a rollout that is finished."""
        self.rollouts += 1
        self.finished += len(rollout.completion_ids)
