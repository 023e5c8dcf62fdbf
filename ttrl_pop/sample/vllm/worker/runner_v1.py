"""The control plane for vLLM's first model runner, which is also the one on CPUs.

`_prepare_inputs` lays out a batch; once it has, the order of its requests is final, and the slot of each is repeated
for as many tokens as are scheduled of it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ttrl_pop.sample.vllm.worker.norms import Minds


def install(runner: Any, minds: Minds) -> None:
    """Let `runner` tag the tokens of every batch."""

    def tag(scheduler_output: Any) -> None:
        names = runner.input_batch.req_ids
        slots = [minds.owner(runner.requests[name].sampling_params.extra_args) for name in names]
        counts = [scheduler_output.num_scheduled_tokens[name] for name in names]
        minds.tag(np.repeat(np.array(slots, np.int64), counts))

    after_layout(runner, tag)


def after_layout(runner: Any, what: Callable[[Any], None]) -> None:
    """Let `runner` do `what` with vLLM's schedule whenever it has laid out a batch."""
    original = runner._prepare_inputs

    def prepare(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = original(scheduler_output, *args, **kwargs)
        what(scheduler_output)
        return prepared

    runner._prepare_inputs = prepare
