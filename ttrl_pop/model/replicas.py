"""The same policy in every process: orders travel with the digest of the weights that they are done with, and with the
weights themselves where these have changed since the last time, whatever changed them."""

import hashlib

import torch
from torch import Tensor

from ttrl_pop.errors import EngineError
from ttrl_pop.model.policy import Policy
from ttrl_pop.ranks.orders import Order, Told
from ttrl_pop.ranks.ranks import Ranks


def tell(ranks: Ranks, policy: Policy, order: Order) -> None:
    """Tell the others what to do with the policy as it is now. A process alone has nobody to tell."""
    if not ranks.leads:
        return
    found = digest(policy)
    ranks.tell(Told(order, found, policy.version, found != ranks.held))
    if found != ranks.held:
        ranks.spread(weights(policy))
        ranks.held = found


def take(ranks: Ranks, policy: Policy, told: Told) -> None:
    """Hold the weights that an order is done with.

    Raises:
        EngineError: this process has others.
    """
    if told.follow:
        ranks.spread(weights(policy))
    if digest(policy) != told.digest:
        raise EngineError("its weights are not those of the first process; go on from the newest checkpoint")
    policy.version = told.version


def weights(policy: Policy) -> list[Tensor]:
    """All that training changes, and what else the population goes by."""
    return [*policy.adapter_parameters().values(), *policy.population.state_dict().values()]


def digest(policy: Policy) -> bytes:
    """16 bytes that tell the weights from others."""
    hasher = hashlib.blake2b(digest_size=16)
    for tensor in weights(policy):
        # As bytes, since numpy does not know every type.
        hasher.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return hasher.digest()
