"""Decode steps as a GPU records and repeats them. There is no GPU: torch's own recorder is stood in for by one that
keeps operations and the tensors they were made on, and makes them again without any Python of ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from fakes import FAMILIES, MANY_STOPS, assert_same, norm_noise, requests, tiny_policy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ttrl_pop.config import SamplingConfig
from ttrl_pop.errors import UsageError
from ttrl_pop.model.policy import Policy
from ttrl_pop.population.base import NoPopulation
from ttrl_pop.sample.hf import backend as hf
from ttrl_pop.sample.hf.backend import HfBackend
from ttrl_pop.sample.hf.decode import COLUMNS, RecordedStep
from ttrl_pop.sample.hf.options import HfOptions
from ttrl_pop.types import Rollout

aten = torch.ops.aten
FORBIDDEN = {aten._local_scalar_dense.default, aten.lift_fresh.default}
"""A look at a result, and numbers of the host: neither goes into a graph."""


class Operations(TorchDispatchMode):
    """Records operations, and undoes what they wrote: to record is not to run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.made: set[int] = set()
        self.found: list[torch.Tensor] = []
        """What was there before: of it a graph has the address and no more."""
        self.written: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FORBIDDEN:
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        for parameter, value in zip(func._schema.arguments, args, strict=False):
            if parameter.alias_info is not None and parameter.alias_info.is_write:
                self.written.append((value, value.clone()))
        self.found += [value for value in tensors_of((args, kwargs)) if id(value) not in self.made]
        result = func(*args, **kwargs)
        self.made |= {id(tensor) for tensor in tensors_of(result)}
        self.calls.append((func, args, kwargs, result))
        return result

    def undo(self) -> None:
        for tensor, before in reversed(self.written):
            tensor.copy_(before)
        self.written.clear()

    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tensors_of(result), tensors_of(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def tensors_of(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Graph:
    """For torch.cuda.CUDAGraph."""

    made: "list[Graph]" = []  # noqa: RUF012
    pools: list[str | None] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.operations = Operations()
        self.replays = 0
        self.made.append(self)

    def pool(self) -> str:
        return "pool"

    def replay(self) -> None:
        self.replays += 1
        self.operations.replay()


@contextmanager
def capture(graph: Graph, pool: str | None = None) -> Iterator[None]:
    """For torch.cuda.graph."""
    Graph.pools.append(pool)
    torch.cuda.set_stream("recording")
    # Where it fails, torch leaves its stream as it is.
    with graph.operations:
        yield
    torch.cuda.set_stream("own")
    graph.operations.undo()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Graph]]:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    # MKL's own products are no operations of torch.
    monkeypatch.setattr("ttrl_pop.kernels.matmul._kind", lambda: None)
    streams = ["own"]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    Graph.made.clear()
    Graph.pools.clear()
    yield Graph.made
    assert streams[-1] == "own"
    assert Graph.pools[1:] == ["pool"] * (len(Graph.made) - 1), "graphs share their memory"


def written(policy: Policy, with_graphs: bool, minds: int = 3, samples: int = 2, **options: object) -> list[Rollout]:
    backend = HfBackend(policy, SamplingConfig(**{"max_new_tokens": 7, **options}))
    if with_graphs:
        backend.options = HfOptions(graphs=True)
    results = dict(backend.rollouts(requests(policy, minds, samples)))
    return [results[index] for index in range(len(results))]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("every", [1, 3])
def test_recorded_steps_write_what_steps_write(
    family: str, every: int, graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(hf.CHECK_EVERY, "cpu", every)
    policy = tiny_policy(family)
    # Few slots, so that prompts are read between steps and the number of rows goes up and down.
    options = {"max_rows": 7, **MANY_STOPS}
    expected = written(policy, False, **options)
    assert len({len(rollout.completion_ids) for rollout in expected}) > 2
    assert_same(written(policy, True, **options), expected)
    assert 1 <= len(graphs) <= 4, "one for each of 7, 4, 2 and 1 rows, at most"
    assert sum(graph.replays for graph in graphs) > len(graphs)


@pytest.mark.parametrize("kind", ["dim", "completion", "none"])
def test_so_they_do_for_other_populations(kind: str, graphs: list[Graph]) -> None:
    kinds = {
        "dim": norm_noise(0.3, spread="dim"),
        "completion": norm_noise(0.3, scope="completion"),
        "none": NoPopulation(NoPopulation.Options()),
    }
    policy = tiny_policy(population=kinds[kind])
    assert_same(written(policy, True, max_rows=5), written(policy, False, max_rows=5))
    assert graphs


@pytest.mark.parametrize("goes_by_rows", [False, True])
def test_a_graph_serves_many_lengths(goes_by_rows: bool, graphs: list[Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a kernel that reads each row up to its position, one serves all."""
    monkeypatch.setattr("ttrl_pop.sample.hf.decode.has_kernels", lambda _: goes_by_rows)
    policy = tiny_policy()
    options = {"max_new_tokens": 3 * COLUMNS, "minds": 2, "samples": 1, "max_rows": 3}
    expected = written(policy, False, **options)
    longest = max(len(rollout.prompt_ids + rollout.completion_ids) for rollout in expected)
    assert longest > 2 * COLUMNS
    assert_same(written(policy, True, **options), expected)
    rows = {3, 2, 1}
    assert len(graphs) <= len(rows) * (1 if goes_by_rows else -(-longest // COLUMNS))
    assert max(graph.replays for graph in graphs) > COLUMNS / 4


@pytest.mark.parametrize("scope", ["sequence", "completion"])
def test_what_a_graph_reads_lives_as_long_as_it_does(
    scope: str, graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[RecordedStep] = []
    init = RecordedStep.__init__
    monkeypatch.setattr(RecordedStep, "__init__", lambda step, *given: [init(step, *given), steps.append(step)][0])
    policy = tiny_policy(population=norm_noise(0.3, scope=scope), lora=None)
    written(policy, True, minds=5, samples=1, max_rows=3, **MANY_STOPS)
    assert len(graphs) > 1

    def places(kept: Any) -> set[int]:
        return {tensor.untyped_storage().data_ptr() for tensor in tensors_of(kept)}

    model = [[*part.parameters(), *part.buffers()] for part in (policy.network, policy.population)]
    for step, graph in zip(steps, graphs, strict=True):
        own = [step._integers, step.uniforms_B, step.logprobs_B, [*step.cache.layers.values()]]
        read = places(graph.operations.found)
        assert read <= places([model, own, step._held])
        assert not read <= places([model, own])


def test_a_step_that_must_look_at_its_results_is_refused(graphs: list[Graph]) -> None:
    # Its noise is drawn for as many positions as there are.
    policy = tiny_policy(population=norm_noise(0.3, level="token"))
    with pytest.raises(UsageError, match=r"backend_options.graphs: .* not permitted .*; set it to false"):
        written(policy, True)


def test_where_graphs_were_not_asked_for_such_a_step_is_run_as_it_is(
    graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = written(tiny_policy(population=norm_noise(0.3, level="token")), False)
    monkeypatch.setattr(HfBackend, "records", True)
    assert_same(written(tiny_policy(population=norm_noise(0.3, level="token")), False), expected)
    assert len(graphs) == 1, "one wave tries once"


def test_what_could_not_be_recorded_once_is_not_tried_again(
    graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that fails takes memory with it."""
    monkeypatch.setattr(HfBackend, "records", True)
    policy = tiny_policy(population=norm_noise(0.3, level="token"))
    backend = HfBackend(policy, SamplingConfig(max_new_tokens=4))
    for _ in range(2):
        assert len(dict(backend.rollouts(requests(policy)))) == len(requests(policy))
    assert len(graphs) == 1


def test_graphs_take_a_gpu() -> None:
    with pytest.raises(UsageError, match=r"backend_options.graphs takes a CUDA GPU, got cpu"):
        HfBackend(tiny_policy(), SamplingConfig(), HfOptions(graphs=True))
