"""Votes of several processes: each votes on its share of the problems, so that a verdict which took too long in one
cannot part them."""

from collections.abc import Sequence
from dataclasses import replace

from ttrl_pop.ranks.ranks import Ranks
from ttrl_pop.types import Group, Tally
from ttrl_pop.vote.rules import Labels, Rules
from ttrl_pop.vote.vote import vote


def vote_together(groups: Sequence[Group], rules: Rules, labels: Labels | None, ranks: Ranks) -> list[Tally]:
    """Tallies of the groups, in their order. All processes call this alike.

    Raises:
        UsageError: as `vote` has it.
    """
    own = [vote(group, rules, labels) for group in groups[ranks.rank :: ranks.size]]
    # Everybody has the rollouts.
    bare = [replace(tally, group=replace(tally.group, rollouts_G=())) for tally in own]
    told = ranks.exchange(bare)
    return [
        replace(told[number % ranks.size][number // ranks.size], group=group) for number, group in enumerate(groups)
    ]
