"""Loops over float32 on a CPU against torch's operations that they stand for."""

import importlib
import importlib.util
import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from inspect import unwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import FAMILIES, requests, tiny_policy
from torch import Tensor
from transformers.models.llama import modeling_llama

from ttrl_pop.config import SamplingConfig
from ttrl_pop.kernels import fused, loops, norms
from ttrl_pop.kernels.fused import Projection, gated_mlp
from ttrl_pop.kernels.loops import Columns, Norm
from ttrl_pop.model.policy import Policy
from ttrl_pop.sample.hf.backend import HfBackend
from ttrl_pop.sample.hf.cache import Decode, KeyValueCache
from ttrl_pop.sample.hf.draw import draw
from ttrl_pop.types import Rollout

NUMBA = pytest.mark.skipif(loops._kernels() is None, reason="takes numba: extra fast")
POSITIONS = [0, 5, 63, 64, 130]


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Any]:
    """What a function gives without the loops."""

    def without(function: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(loops, "_kernels", lambda: None)
            return function()

    return without


def attended(
    heads: int, key_heads: int, width: int, window: int | None = None, rows: list[int] | None = None, **given: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What newest tokens see, and the keys and values then held. `rows`: those of the batch that are there."""
    held = [given.get(name, drawn(len(POSITIONS) + 1, key_heads, 140, width) + n) for n, name in enumerate(("k", "v"))]
    chosen = list(range(len(POSITIONS))) if rows is None else rows
    newest = [drawn(len(POSITIONS), count, width)[chosen] + n for n, count in enumerate((heads, key_heads, key_heads))]
    cache = KeyValueCache(len(chosen) + 1, 140)
    cache.layers[0] = tuple(states[[*chosen, len(POSITIONS)]] for states in held)  # type: ignore[assignment]
    plan = Decode(cache, torch.tensor(POSITIONS)[chosen], 131, even=False)
    with torch.no_grad():
        out = plan.attend(0, *newest, 0.3, window)
    return out, *cache.layers[0]


@NUMBA
@pytest.mark.parametrize("window", [None, 1, 3, 70])
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(9, 3, 64), (2, 2, 10), (4, 1, 16), (6, 2, 33)])
def test_a_token_sees_its_slot_up_to_itself(
    heads: int, key_heads: int, width: int, window: int | None, by_torch: Callable[[Callable[[], Any]], Any]
) -> None:
    out, *held = attended(heads, key_heads, width, window)
    expected, *expected_held = by_torch(lambda: attended(heads, key_heads, width, window))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert all(map(torch.equal, held, expected_held))


@NUMBA
def test_what_lies_behind_a_token_or_before_its_window_is_not_read() -> None:
    keys, values = (drawn(len(POSITIONS) + 1, 3, 140, 8) + n for n in range(2))
    expected = attended(6, 3, 8, 3, k=keys.clone(), v=values.clone())[0]
    for row, position in enumerate(POSITIONS):
        for states in (keys, values):
            states[row, :, position + 1 :] = math.nan
            states[row, :, : max(0, position - 2)] = math.nan
    assert torch.equal(attended(6, 3, 8, 3, k=keys, v=values)[0], expected)


@NUMBA
def test_scores_that_are_far_apart_do_not_overflow(by_torch: Callable[[Callable[[], Any]], Any]) -> None:
    keys = 300 * drawn(len(POSITIONS) + 1, 3, 140, 8)
    out = attended(6, 3, 8, k=keys.clone())[0]
    torch.testing.assert_close(out, by_torch(lambda: attended(6, 3, 8, k=keys.clone()))[0], rtol=1e-4, atol=1e-4)


@NUMBA
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["k", "v"])
def test_what_is_no_number_stays_in_its_row_and_head_and_is_there_what_it_is_in_torch(
    odd: float, which: str, by_torch: Callable[[Callable[[], Any]], Any]
) -> None:
    states = drawn(len(POSITIONS) + 1, 3, 140, 8) + 1
    states[3, 1, 17] = odd
    out = attended(6, 3, 8, **{which: states.clone()})[0]
    expected = by_torch(lambda: attended(6, 3, 8, **{which: states.clone()}))[0]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert not out[3, 2:4].isfinite().any()
    out[3, 2:4] = 0
    assert out.isfinite().all()


@NUMBA
def test_a_position_outside_of_its_slot_is_an_error_and_not_memory_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "GRAIN", 1)
    expected = attended(4, 2, 8)[0]
    for position in (-1, 140):
        for threads in (1, 5):
            with monkeypatch.context() as patch:
                patch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
                patch.setattr(f"{__name__}.POSITIONS", [position, *POSITIONS[1:]])
                with pytest.raises(IndexError, match="outside of its slot"):
                    attended(4, 2, 8)
    assert torch.equal(attended(4, 2, 8)[0], expected)
    for offsets in (drawn(2, 3), drawn(0, 3)):
        for added in (
            lambda *given: loops.offset_rows(drawn(2, 3), *given),
            lambda *given: loops.rms_norm(drawn(2, 3), norm(3), given),
            lambda *given: loops.add_rms_norm(drawn(2, 3), drawn(2, 3), norm(3), given),
        ):
            for row in (2, -1):
                with pytest.raises(IndexError, match="row of offsets"):
                    added(offsets, torch.tensor([0, row]))


def columns(states: Tensor, counts: list[int]) -> list[Columns]:
    """Columns of a matrix, so many behind each other."""
    return [Columns(states, sum(counts[:place]), count) for place, count in enumerate(counts)]


def norm(width: int, added: float = 0.0) -> Norm:
    return Norm(drawn(width), 1e-5, added)


def made(rows: list[int]) -> list[Tensor]:
    """What each loop makes of these of eleven rows."""
    x, wide = drawn(11, 37)[rows], drawn(11, 80)[rows]
    angles = drawn(11, 10)[rows], drawn(11, 11)[rows, 1:]
    offsets = drawn(3, 37), torch.arange(11)[rows] % 3
    return [
        loops.rms_norm(x, norm(37, 1.0)),
        loops.rms_norm(x, norm(37), offsets),
        *loops.add_rms_norm(x, x + 1, norm(37), offsets),
        loops.offset_rows(x, *offsets),
        loops.open_gates(*columns(wide, [40, 40])),
        *loops.draw(7 * drawn(11, 700)[rows], torch.linspace(0, 0.99, 11)[rows], 0.7),
        *loops.turn(*columns(wide, [40, 20, 20]), *angles),
        *loops.turn(*columns(wide, [40, 20, 20]), *angles, (norm(10), norm(10, 0.0))),
    ]


@NUMBA
@torch.no_grad()
def test_a_row_alone_is_what_it_is_among_others_with_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "GRAIN", 1)
    expected, seen = made([*range(11)]), attended(9, 3, 64)[0]
    for threads in (1, 2, 3, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert all(map(torch.equal, made([*range(11)]), expected))
        assert torch.equal(attended(9, 3, 64)[0], seen)
        for row in (0, 7):
            assert all(map(torch.equal, made([row]), [whole[[row]] for whole in expected]))
        for row in range(len(POSITIONS)):
            assert torch.equal(attended(9, 3, 64, rows=[row])[0], seen[[row]])


@NUMBA
@torch.no_grad()
@pytest.mark.parametrize("odd", [0.0, -0.0, math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("shape", [(5, 37), (2, 3, 64), (0, 8)])
def test_norms_and_offsets_are_those_of_torch(
    shape: tuple[int, ...], odd: float, by_torch: Callable[[Callable[[], Any]], Any]
) -> None:
    x, weight = drawn(*shape), drawn(shape[-1]).requires_grad_()
    if x.numel():
        x.view(-1, shape[-1])[1, 3] = odd
    for gain in ("weight", "one plus weight"):
        found, expected = norms.rms_norm(x, weight, 1e-5, gain), by_torch(lambda: norms.rms_norm(x, weight, 1e-5, gain))  # noqa: B023
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    rows, offsets = x.view(-1, shape[-1]), drawn(3, shape[-1])
    row_N = torch.arange(len(rows)) % 3
    found, expected = (
        norms.offset_rows(rows, offsets, row_N),
        by_torch(lambda: norms.offset_rows(rows, offsets, row_N)),
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@NUMBA
@torch.no_grad()
def test_gates_open_as_torch_opens_them_up_to_infinity(by_torch: Callable[[Callable[[], Any]], Any]) -> None:
    gates = torch.cat([torch.linspace(-130, 130, 5000), torch.tensor([math.nan, math.inf, -math.inf])]).repeat(2, 1)
    given = Columns(gates, 0, gates.shape[1]), Columns(torch.ones_like(gates), 0, gates.shape[1])
    found, expected = loops.open_gates(*given), torch.nn.functional.silu(gates.double())
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-35, equal_nan=True)
    layers = [Projection(drawn(*shape)) for shape in ((7, 5), (7, 5), (5, 7))]
    x = drawn(2, 3, 5)
    torch.testing.assert_close(gated_mlp(x, *layers), by_torch(lambda: gated_mlp(x, *layers)))
    both, other = drawn(4, 20), drawn(4, 9)
    for first, second in (
        (Columns(both, 0, 7), Columns(both, 7, 7)),
        (Columns(both, 13, 7), Columns(both, 2, 7)),
        (Columns(both, 3, 7), Columns(other, 2, 7)),
        (Columns(both[:0], 0, 7), Columns(other[:0], 0, 7)),
        (Columns(both.t().contiguous().t(), 0, 7), Columns(both[:, 3:], 0, 7)),
    ):
        before = both.clone()
        expected = torch.nn.functional.silu(first.states()) * second.states()
        torch.testing.assert_close(loops.open_gates(first, second), expected)
        assert torch.equal(both, before)


@NUMBA
@torch.no_grad()
@pytest.mark.parametrize("vocabulary", [2, 97, 256, 257, 5000])
@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_tokens_are_drawn_as_torch_draws_them(
    vocabulary: int, temperature: float, by_torch: Callable[[Callable[[], Any]], Any]
) -> None:
    logits, uniforms = 3 * drawn(500, vocabulary), torch.linspace(0, 1, 501)[:500]
    logits[:, 1::3] = -math.inf
    (tokens, logprobs), (expected, own) = (
        draw(logits, uniforms, temperature),
        by_torch(lambda: draw(logits, uniforms, temperature)),
    )
    cdf = (logits.double() / temperature).softmax(-1).cumsum(-1)
    ends = cdf.gather(1, torch.minimum(tokens, expected)[:, None])[:, 0]
    # Sums in another order may find the token beside, where the point lies on the border of both.
    assert ((tokens == expected) | ((ends - uniforms).abs() < 1e-6)).all()
    same = tokens == expected
    assert same.float().mean() > 0.99
    torch.testing.assert_close(logprobs[same], own[same], rtol=1e-5, atol=1e-5)


@NUMBA
@torch.no_grad()
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
def test_tokens_are_drawn_whatever_type_is_the_processs_default(default: torch.dtype) -> None:
    logits, uniforms = drawn(5, 97), torch.linspace(0, 0.9, 5)
    tokens, logprobs = draw(logits, uniforms, 1.0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        again, same = draw(logits, uniforms, 1.0)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(again, tokens)
    assert same.dtype == torch.float32
    assert torch.equal(same, logprobs)


@NUMBA
@torch.no_grad()
def test_what_has_no_probability_is_never_drawn_and_odd_logits_show() -> None:
    almost = torch.nextafter(torch.ones(()), torch.zeros(()))
    logits = torch.full((3, 1000), -math.inf)
    logits[0, [3, 700]], logits[1, 999], logits[2, 0] = 0.0, 5.0, -1e30
    for point, token in ((0.0, 3), (0.499, 3), (0.501, 700), (float(almost), 700), (1.0, 700)):
        tokens, logprobs = draw(logits, torch.full((3,), point), 1.0)
        assert tokens.tolist() == [token, 999, 0]
        assert logprobs.tolist() == pytest.approx([math.log(0.5), 0, 0], abs=1e-6)
    logits[0, 500], logits[1, 500], logits[2] = math.nan, math.inf, -math.inf
    assert draw(logits, torch.full((3,), 0.5), 1.0)[1].isnan().all()


@NUMBA
@torch.no_grad()
@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(9, 3, 64), (4, 1, 10), (2, 2, 16)])
def test_turned_as_transformers_turns(heads: int, key_heads: int, width: int, has_norms: bool) -> None:
    own = getattr(modeling_llama.apply_rotary_pos_emb, "own", modeling_llama.apply_rotary_pos_emb)
    counts = [width * count for count in (heads, key_heads, key_heads)]
    cos, sin = drawn(7, width), drawn(7, width).flip(-1)
    of_heads = Norm(drawn(width), 1e-2, 1.0), Norm(drawn(width) + 3, 1e-2, 1.0)
    for given in (
        columns(drawn(7, sum(counts)), counts),
        [Columns(drawn(7, count + 3), 2, count) for count in counts],
    ):
        q, k, v = (x.states().view(7, -1, width) for x in given)
        found = loops.turn(*given, cos, sin, of_heads if has_norms else None)
        if has_norms:
            q, k = (
                norms.rms_norm(x, n.weight, n.eps, "one plus weight") for x, n in zip((q, k), of_heads, strict=True)
            )
        turned = own(*(x.transpose(0, 1)[None] for x in (q, k)), cos[None], sin[None])
        for one, other in zip(found, (*(x[0].transpose(0, 1) for x in turned), v), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
            assert one.is_contiguous()


def written(policy: Policy) -> list[Rollout]:
    results = dict(HfBackend(policy, SamplingConfig(max_new_tokens=6, max_rows=5)).rollouts(requests(policy, 3, 2)))
    return [results[index] for index in range(len(results))]


@NUMBA
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_writes_what_it_writes_without_them(
    family: str, monkeypatch: pytest.MonkeyPatch, by_torch: Callable[[Callable[[], Any]], Any]
) -> None:
    policy = tiny_policy(family, dtype=torch.float32)
    used: set[str] = set()
    over = loops._over
    monkeypatch.setattr(loops, "_over", lambda kernel, *given: [used.add(kernel.__name__), over(kernel, *given)][1])
    found = written(policy)
    own = {"attend", "offset_rows"} if family == "gpt2" else {"attend", "rms_norm"}
    assert own <= used
    is_plain = family in ("llama", "qwen2", "qwen3", "mistral")
    assert ({"open_gates", "turn", "add_rms_norm"} <= used) == is_plain
    used.clear()
    expected = by_torch(lambda: written(policy))
    assert not used
    assert [rollout.completion_ids for rollout in found] == [rollout.completion_ids for rollout in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@NUMBA
def test_beside_vllm_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    loops._kernels.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", {"vllm": SimpleNamespace(origin="vllm/__init__.py")}.get)
    try:
        assert not loops.are_there()
        # A folder of that name in the working directory is no vLLM.
        monkeypatch.setattr(importlib.util, "find_spec", {"vllm": SimpleNamespace(origin=None)}.get)
        loops._kernels.cache_clear()
        assert loops.are_there()
    finally:
        loops._kernels.cache_clear()


def test_without_numba_with_gradients_and_in_other_types_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    x = drawn(2, 4)
    assert not loops.are_for(x)
    with torch.no_grad():
        assert loops.are_for(x) == (loops._kernels() is not None)
        assert not loops.are_for(x.double())
        assert not loops.are_for(x.bfloat16())
        assert not loops.are_for(x.to("meta"))
        # As where it is not installed, and where it refuses the numpy that is.
        monkeypatch.setitem(sys.modules, "numba", None)
        monkeypatch.delitem(sys.modules, "ttrl_pop.kernels.loop_kernels", raising=False)
        monkeypatch.delattr("ttrl_pop.kernels.loop_kernels", raising=False)
        loops._kernels.cache_clear()
        try:
            assert not loops.are_for(x)
            assert norms.rms_norm(x, torch.ones(4), 1e-5, "weight").isfinite().all()
            assert attended(4, 2, 8)[0].isfinite().all()
        finally:
            loops._kernels.cache_clear()
    assert fused.loops is loops


@NUMBA
def test_where_nothing_can_be_kept_they_are_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    numba, kernels = map(importlib.import_module, ("numba", "ttrl_pop.kernels.loop_kernels"))
    own, asked = numba.njit, []

    def refusing(*given: Any, **options: Any) -> Any:
        asked.append(options.get("cache", False))
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return own(*given, **options)

    monkeypatch.setattr(numba, "njit", refusing)
    doubled = kernels._compiled({"contract"})(lambda x: 2 * x)
    assert doubled(3) == 6
    assert asked[:2] == [True, False]


@NUMBA
def test_a_full_disk_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = importlib.import_module("ttrl_pop.kernels.loop_kernels")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importlib.import_module("numba.core.caching").FunctionCache, "save_overload", full)
    tripled = kernels._compiled({"contract"})(lambda x: 3 * x)
    assert tripled(3) == 9


@NUMBA
@pytest.mark.skipif(not hasattr(os, "fork"), reason="takes fork")
@torch.no_grad()
def test_a_fork_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "GRAIN", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    expected = made([*range(11)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if all(map(torch.equal, made([*range(11)]), expected)) else 1)
    assert os.waitpid(child, 0)[1] == 0


@NUMBA
@torch.no_grad()
def test_callers_beside_each_other_each_get_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "GRAIN", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    expected = made([*range(11)])

    def again(_: int) -> bool:
        with torch.no_grad():
            return all(all(map(torch.equal, made([*range(11)]), expected)) for _ in range(20))

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(again, range(8)))


@NUMBA
@torch.no_grad()
def test_threads_are_as_many_as_were_needed_at_once_and_their_errors_come_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "GRAIN", 1)
    monkeypatch.setattr(loops, "_helpers", cache(loops._helpers.__wrapped__))
    taken: list[tuple[int, int]] = []
    ended = []

    def kernel(begin: int, end: int) -> None:
        taken.append((begin, end))
        if end == 12:
            raise IndexError("of the last")
        if begin == 0:
            raise KeyboardInterrupt
        ended.append(begin)

    before = threading.active_count()
    for threads in (2, 4, 3, 6):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        loops._over(lambda begin, end: taken.append((begin, end)), 12, 1)
    assert threading.active_count() - before == 5
    assert sorted(row for begin, end in taken for row in range(begin, end)) == sorted([*range(12)] * 4)
    with pytest.raises(KeyboardInterrupt):
        loops._over(kernel, 12, 1)
    assert sorted(ended) == [2, 4, 6, 8], "all others have ended by then"
    with pytest.raises(IndexError, match="of the last"):
        loops._over(lambda begin, end: kernel(begin + 1, end), 12, 1)

    monkeypatch.setattr(loops, "_helpers", cache(loops._helpers.__wrapped__))
    monkeypatch.setattr(loops, "Thread", raising(RuntimeError("can't start new thread")))
    taken.clear()
    loops._over(lambda begin, end: taken.append((begin, end)), 12, 1)
    assert taken == [(0, 12)]


def raising(error: Exception) -> Callable[..., Any]:
    def raised(*_: Any, **__: Any) -> Any:
        raise error

    return raised


@NUMBA
@torch.no_grad()
def test_sizes_that_do_not_agree_are_errors_and_not_memory_of_others() -> None:
    x = drawn(4, 8)
    # As outside of the tests, in which annotations are checked as well.
    normed, added, offset, gates, turn, drawing = map(
        unwrap,
        (loops.rms_norm, loops.add_rms_norm, loops.offset_rows, loops.open_gates, loops.turn, loops.draw),
    )
    row_N, cos = torch.zeros(4, dtype=torch.long), drawn(4, 4)
    q, k, v = columns(drawn(4, 16), [8, 4, 4])
    for call in (
        lambda: normed(x, norm(7)),
        lambda: normed(x, norm(8), (drawn(2, 7), row_N)),
        lambda: normed(x, norm(8), (drawn(2, 8), row_N[:3])),
        lambda: added(x, drawn(4, 7), norm(8), None),
        lambda: added(x, x, norm(8), (drawn(2, 8), row_N[:3])),
        lambda: offset(x, drawn(2, 8), torch.zeros(3, dtype=torch.long)),
        lambda: offset(x, drawn(2, 1), row_N),
        lambda: gates(Columns(x, 0, 8), Columns(drawn(4, 1), 0, 1)),
        lambda: gates(Columns(x, 0, 8), Columns(drawn(3, 8), 0, 8)),
        lambda: gates(Columns(x, 1, 8), Columns(x, 0, 8)),
        lambda: gates(Columns(x, -1, 4), Columns(x, 0, 4)),
        lambda: drawing(x, torch.zeros(3), 1.0),
        lambda: turn(q, k, v, drawn(5, 4), drawn(5, 4)),
        lambda: turn(q, k, v, cos, drawn(4, 2)),
        lambda: turn(q, k, v, drawn(4, 3), drawn(4, 3)),
        lambda: turn(q, k, Columns(v.matrix, 12, 3), cos, cos),
        lambda: turn(q, k, Columns(v.matrix, 13, 4), cos, cos),
        lambda: turn(q, k, v, cos, cos, (norm(4), norm(3))),
        lambda: attended(4, 3, 8),
    ):
        with pytest.raises(ValueError, match="must agree in their sizes"):
            call()


@NUMBA
def test_files_that_were_left_half_written_are_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numba, kernels = map(importlib.import_module, ("numba", "ttrl_pop.kernels.loop_kernels"))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    source = tmp_path / "quadrupled.py"
    source.write_text("def quadrupled(x):\n    return 4 * x\n")
    spec = importlib.util.spec_from_file_location("quadrupled", source)
    assert spec is not None
    assert spec.loader is not None
    for _ in range(2):
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert kernels._compiled({"contract"})(module.quadrupled)(3) == 12
        kept = [*tmp_path.rglob("*.nb*")]
        assert len(kept) >= 2
        for file in kept:
            file.write_bytes(b"")


def test_where_numba_does_not_load_or_compile_torch_computes_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise OSError("libLLVM cannot be loaded")

    monkeypatch.setitem(sys.modules, "numba", Broken())  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, "ttrl_pop.kernels.loop_kernels", raising=False)
    monkeypatch.delattr("ttrl_pop.kernels.loop_kernels", raising=False)
    monkeypatch.setattr(loops, "_is_installed", lambda name: False)
    loops._kernels.cache_clear()
    try:
        with pytest.warns(UserWarning, match="slower without it: libLLVM"):
            assert not loops.are_there()
    finally:
        loops._kernels.cache_clear()
