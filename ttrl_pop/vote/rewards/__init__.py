"""Rewards: what each rollout of a group is paid, from its `base.Ballot` alone.

`consensus` pays agreement, `novelty` agreement said in new words, `gold` answers that equal the key; `controls` pay by
chance. To add one: a function of a ballot, or a class whose instances are, in a file here with its short name in
`ttrl_pop.plugins`; one of your own is named as `package.module:Name` (examples/plugins/reward_short.py).
tests/vote/rewards works values out by hand.
"""
