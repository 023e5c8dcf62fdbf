"""The control plane for vLLM's second model runner, the default on GPUs.

Its model state sees every request come and prepares what the model reads for a batch, before any CUDA graph is
replayed. The state gets a class that notes the slot of each request by its row and tags the tokens of each batch.
"""

from typing import Any

import numpy as np

from ttrl_pop.sample.vllm.worker.norms import NOBODY, Minds


def install(runner: Any, minds: Minds) -> None:
    """Let `runner` tag the tokens of every batch."""
    attach(runner.model_state, minds)


def attach(state: Any, minds: Minds) -> None:
    """Give a model state the class that tags."""
    state.mind_slots = np.full(state.max_num_reqs, NOBODY, np.int64)
    state.minds = minds
    state.__class__ = tagging(type(state))


def tagging(kind: type[Any]) -> type[Any]:
    """The class of a model state that tags tokens, made from that of the state."""

    def add_request(self: Any, req_index: int, new_req_data: Any) -> None:
        kind.add_request(self, req_index, new_req_data)
        params = new_req_data.sampling_params
        self.mind_slots[req_index] = self.minds.owner(None if params is None else params.extra_args)

    def prepare_inputs(self: Any, input_batch: Any, req_states: Any) -> Any:
        count = input_batch.num_reqs
        slots = self.mind_slots[input_batch.idx_mapping_np[:count]]
        self.minds.tag(np.repeat(slots, np.diff(input_batch.query_start_loc_np[: count + 1])))
        return kind.prepare_inputs(self, input_batch, req_states)

    return type(f"Tagging{kind.__name__}", (kind,), {"add_request": add_request, "prepare_inputs": prepare_inputs})
