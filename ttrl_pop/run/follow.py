"""A process that is not the first of a run: it does what the first tells, and writes no file."""

import gc
from collections.abc import Iterable, Mapping

from ttrl_pop.learn.learner import Learner
from ttrl_pop.learn.micro_batches import Sample
from ttrl_pop.model.replicas import take
from ttrl_pop.ranks.orders import Counted, Differentiate, Learn, Open, Order, Told, Vote, Write
from ttrl_pop.ranks.ranks import Ranks
from ttrl_pop.run.session import Session, open_session
from ttrl_pop.types import Group
from ttrl_pop.vote.together import vote_together


def follow(ranks: Ranks) -> None:
    """Do what the first process tells until it tells no more.

    Raises:
        RankError: another process has ended.
        TtrlPopError: what is told cannot be done here, as where the model is not on this machine.
    """
    follower: Follower | None = None
    try:
        while (message := ranks.hear()) is not None:
            match message:
                case Open():
                    if follower is not None:
                        follower.session.backend.close()
                        # A model is held by its own hooks: the next one should not have to stand beside it.
                        follower = None
                        gc.collect()
                    follower = Follower(message)
                case Vote() | Learn() if follower is not None:
                    follower.do(message)
                case Told() if follower is not None:
                    follower.do_with_weights(message)
                case _:
                    raise TypeError(f"an order of this kind cannot be done here: {message!r}")
    finally:
        if follower is not None:
            follower.session.backend.close()


class Follower:
    """A session that another process leads, with what it knows of the step under way."""

    def __init__(self, order: Open) -> None:
        self.session: Session = open_session(
            order.config, order.problems, adapter=order.adapter, rewards=order.rewards, settled=True, held=order.held
        )
        self.learner = Learner(self.session.policy, self.session.config, self.session.ranks)
        self._groups: Mapping[str, Group] = {}
        """What was written last."""
        self._samples: list[Sample] = []

    def do(self, order: Order) -> None:
        """Do what takes no weights."""
        match order:
            case Vote(is_held_out, ids, labels):
                groups = [self._groups[name] for name in ids]
                vote_together(groups, self._asked_in(is_held_out).rules, labels, self.session.ranks)
            case Learn(shards):
                own = self.session.ranks.owned(len(shards))
                self._samples = [sample for shard in own for sample in self._found(shard, shards[shard])]

    def do_with_weights(self, told: Told) -> None:
        """Do what is told with the weights that it is told with."""
        session = self.session
        take(session.ranks, session.policy, told)
        if told.follow:
            session.backend.refresh()
        match told.order:
            case Write(is_held_out, ids, minds, samples_per_mind, step, purpose, weights, limits):
                if limits:
                    session.backend.restore_limits(limits)
                asked_in = self._asked_in(is_held_out)
                known = {problem.id: problem for problem in asked_in.problems}
                problems = [known[name] for name in ids]
                groups = asked_in.sample(problems, minds, samples_per_mind, step, purpose, weights)
                self._groups = {group.problem.id: group for group in groups}
            case Differentiate(first, token_budget):
                self.learner.token_budget = token_budget
                for sample in self._samples if first else ():
                    sample.old = None
                self.learner.differentiate(self._samples)

    def _asked_in(self, is_held_out: bool) -> Session:
        """The session of the problems that are trained on, or of those held out."""
        if not is_held_out:
            return self.session
        assert self.session.held is not None
        return self.session.held

    def _found(self, shard: int, counted: Iterable[Counted]) -> Iterable[Sample]:
        """Samples of a shard, with the rollouts that are known here."""
        for each in counted:
            rollout = self._groups[each.problem].rollouts_G[each.member]
            yield Sample(rollout, each.advantage, each.weight, shard)
