"""What a population must learn of a model before training, found without labels on the problems at hand.

A population says what it `lacks`; `ttrl_pop.fit.prepare` finds it. To add a fit, write it in a file of its own, as
`ttrl_pop.fit.sigma` finds a scale on what the base model says, and give its lack a case in `prepare`. What lacks
nothing any more is then looked at in `ttrl_pop.fit.admission`.
"""
