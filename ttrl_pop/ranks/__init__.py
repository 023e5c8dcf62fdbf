"""Several processes that work as one: the first leads, the others do what they are told (`ttrl_pop.run.follow`).

`shards` cuts a step into parts, the same for any number of processes; `ranks` is how processes talk; `orders` is what
the first one says. Another thing to be done together is an order here, told where it begins and done in `follow`.
"""
