"""The control plane of vLLM's second model runner, on vLLM's own model state with batches made by hand.

The runner itself needs Triton, which a CPU lacks: it has not run here."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from vllm_models import Models

from ttrl_pop.sample.vllm.worker import runner_v2
from ttrl_pop.sample.vllm.worker.norms import Minds

TOKENS, ROWS = 64, 8


def minds() -> Minds:
    return Minds(nn.ModuleDict({"norm": nn.RMSNorm(4)}), ["norm"], 5, TOKENS, torch.device("cpu"))


@pytest.fixture(scope="module")
def make_state(models: Models) -> Any:
    """vLLM's state for a plain decoder, as its runner makes it."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.worker.gpu.model_states.default import DefaultModelState

    arguments = EngineArgs(model=models.path("llama"), max_model_len=256, max_num_seqs=ROWS)
    config = arguments.create_engine_config()
    return lambda: DefaultModelState(config, nn.Module(), None, torch.device("cpu"))


def new_request(name: str, slot: int | None) -> Any:
    from vllm import SamplingParams
    from vllm.v1.core.sched.output import NewRequestData

    extra = None if slot is None else {"mind": slot}
    return NewRequestData(
        req_id=name,
        prompt_token_ids=[1, 2, 3],
        mm_features=[],
        sampling_params=SamplingParams(extra_args=extra),
        pooling_params=None,
        block_ids=([0],),
        num_computed_tokens=0,
        lora_request=None,
    )


def batch(rows: list[int], counts: list[int], padding: int = 0) -> Any:
    """What of vLLM's InputBatch the states read: rows of the requests, and where each one's tokens begin."""
    from vllm.v1.worker.gpu.input_batch import InputBatch

    made = InputBatch.make_dummy(len(rows), sum(counts), buffers())
    made.idx_mapping_np[:] = rows
    begins = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    # Beyond the requests, as with padded graphs, the place repeats.
    made.query_start_loc_np = np.concatenate([begins, np.full(padding, begins[-1], np.int32)])
    return made


def buffers() -> Any:
    from vllm.v1.worker.gpu.input_batch import InputBuffers

    return InputBuffers(ROWS, TOKENS, torch.device("cpu"))


def test_the_state_is_vllms_own_and_stays_one(make_state: Any) -> None:
    from vllm.v1.worker.gpu.model_states.default import DefaultModelState

    state = make_state()
    runner_v2.install(SimpleNamespace(model_state=state), minds())
    assert isinstance(state, DefaultModelState)
    assert type(state).__name__ == "TaggingDefaultModelState"


@settings(max_examples=50, deadline=None)
@given(plan=st.data())
def test_every_token_has_the_slot_of_its_request(make_state: Any, plan: st.DataObject) -> None:
    state, plane = make_state(), minds()
    runner_v2.attach(state, plane)
    plane.armed = True
    slots: dict[int, int] = {}
    for turn in range(plan.draw(st.integers(1, 4))):
        for row in plan.draw(st.lists(st.integers(0, ROWS - 1), unique=True)):
            # A row is given to another request once its own has gone.
            slots[row] = plan.draw(st.integers(0, 5))
            state.add_request(row, new_request(f"{turn}-{row}", slots[row]))
        if not slots:
            continue
        rows = plan.draw(st.permutations(sorted(slots)))[: plan.draw(st.integers(1, len(slots)))]
        counts = [plan.draw(st.integers(1, 8)) for _ in rows]
        made = batch(list(rows), counts, padding=plan.draw(st.integers(0, 3)))
        assert state.prepare_inputs(made, None) == {}
        expected = [slots[row] for row, count in zip(rows, counts, strict=True) for _ in range(count)]
        assert plane.index.tolist() == expected + [0] * (TOKENS - len(expected))
        assert plane.take_tagged() == len(expected)


def test_a_warm_up_request_has_no_mind_and_a_later_one_must(make_state: Any) -> None:
    state, plane = make_state(), minds()
    runner_v2.attach(state, plane)
    state.add_request(3, new_request("warm-up", None))
    state.prepare_inputs(batch([3], [4]), None)
    assert plane.index.tolist() == [0] * TOKENS
    plane.armed = True
    with pytest.raises(ValueError, match="a request without a mind"):
        state.prepare_inputs(batch([3], [4]), None)


def test_a_fixed_mind_is_that_of_all_tokens(make_state: Any) -> None:
    state, plane = make_state(), minds()
    runner_v2.attach(state, plane)
    state.add_request(0, new_request("a", 1))
    plane.fill(4)
    state.prepare_inputs(batch([0], [4]), None)
    assert plane.index.tolist() == [4] * TOKENS
    plane.fill(None)
    state.prepare_inputs(batch([0], [4]), None)
    assert plane.index.tolist() == [1] * 4 + [0] * (TOKENS - 4)


def test_vllm_still_prepares_as_we_read_it() -> None:
    """What the runner gives the state, and when, is not to be seen here: that it does is read in its source."""
    import inspect

    from vllm.v1.worker.gpu import model_runner

    source = inspect.getsource(model_runner)
    prepared = source.index("self.model_state.prepare_inputs(input_batch, self.req_states)")
    assert prepared < source.index("self.cudagraph_manager.run_fullgraph(")
    assert "self.model_state.add_request(req_index, new_req_data)" in source
