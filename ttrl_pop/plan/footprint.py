"""How many bytes a command takes, by part: of memory at its peak, and of the disk. Pure arithmetic."""

from collections.abc import Mapping

from ttrl_pop.config import Config
from ttrl_pop.model.size import PolicySize
from ttrl_pop.plan.work import Forwards

LOGITS = 4
"""Arrays as wide as the vocabulary that are held at once: logits, logits in float32, log-probabilities, and what their
gradient or a draw is made of."""

WIDE = 4
"""Bytes of a number of float32."""

LAYER = 2
"""Layers' worth of what a token leaves behind that is held for a while, in a forward without gradients as well as in
the backward pass of a layer."""

ROLLOUT_TOKEN = 14
"""Bytes of a token of a rollout on the disk, packed: its number, its text and its log-probability (dev/LOG.md)."""

ANSWER = 400
"""Bytes of a row of answers, about."""


def memory(
    config: Config,
    size: PolicySize,
    forwards: Forwards,
    program: int,
    slots: int,
    longest: int,
    cache_bytes: int,
    kept_bytes: float,
    learns: bool,
) -> Mapping[str, int]:
    """Bytes at the peak by part, which are held at the same time: what is freed is kept for the next tensor.

    Args:
        program: bytes of the program itself with its libraries; 0 where the memory is a device's.
        slots: rollouts that are written together, of up to `longest` tokens.
        cache_bytes: of the keys and values of a token.
        kept_bytes: what a token of a micro-batch leaves for the backward pass.
    """
    one_layer = kept_bytes / size.layers
    logits = forwards.logits * size.vocabulary * WIDE * LOGITS
    reading = forwards.read * one_layer * LAYER
    learning = forwards.learn * (kept_bytes + one_layer * LAYER) if learns else 0.0
    # A copy, a gradient and two moments of each; the average that labels, where there is one.
    copies = (4 + (config.vote.labels == "average")) if learns else 1
    return {
        "program": program,
        "weights": size.weights,
        "merged weights": size.merged,
        "laid out weights": size.laid_out,
        "adapter, population, optimizer": size.trained * copies,
        "keys and values": slots * longest * cache_bytes,
        "activations": round(max(reading, learning) + logits),
    }


def disk(config: Config, size: PolicySize, problems: int, rollouts: int) -> Mapping[str, int]:
    """Bytes of a run directory at its end, by part.

    Args:
        rollouts: of the steps, which are kept.
    """
    saved = min(-(-config.steps // config.checkpoint.every), config.checkpoint.keep + 1)
    average = config.vote.labels == "average"
    return {
        "rollouts": rollouts * config.sampling.max_new_tokens * ROLLOUT_TOKEN,
        "checkpoints": saved * size.trained * (3 + average),
        "answers": problems * ANSWER * (config.baseline + config.answers),
    }
