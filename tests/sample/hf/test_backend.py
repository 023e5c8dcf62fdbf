"""Rollouts: what is written depends on problem, mind and sample, never on the batch."""

import math
import random
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, ClassVar

import pytest
import torch
from fakes import (
    FAMILIES,
    MANY_STOPS,
    PROBLEMS,
    assert_same,
    norm_noise,
    requests,
    tiny_network,
    tiny_policy,
    tiny_session,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ttrl_pop.config import SamplingConfig
from ttrl_pop.errors import DivergenceError, UsageError
from ttrl_pop.model.logprobs import token_logprobs
from ttrl_pop.model.policy import Policy
from ttrl_pop.model.prompts import decode, encode
from ttrl_pop.packing.attention import single
from ttrl_pop.packing.pack import Pack
from ttrl_pop.packing.radix import KEYS, alike
from ttrl_pop.population.base import MEAN, NoPopulation
from ttrl_pop.sample.backend import Request
from ttrl_pop.sample.hf import backend as hf
from ttrl_pop.sample.hf.backend import HfBackend
from ttrl_pop.sample.hf.draw import draw
from ttrl_pop.sample.sample import sample
from ttrl_pop.types import Mind, Rollout


def written(policy: Policy, asked: list[Request], **options: object) -> list[Rollout]:
    sampling = SamplingConfig(**{"max_new_tokens": 7, **options})
    pairs = list(HfBackend(policy, sampling).rollouts(asked))
    assert sorted(index for index, _ in pairs) == list(range(len(asked)))
    return [rollout for _, rollout in sorted(pairs, key=lambda pair: pair[0])]


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_decode_equals_full_forward(family: str) -> None:
    policy = tiny_policy(family)
    rollouts = written(policy, requests(policy))
    assert len({len(r.prompt_ids) for r in rollouts}) > 1, "the batch must be uneven"
    for rollout in rollouts:
        logprobs, mask = token_logprobs(policy, [rollout], [rollout.mind], 1.0)
        assert mask.all()
        assert list(rollout.logprobs) == pytest.approx(logprobs[0].tolist(), abs=1e-10)


@pytest.mark.parametrize("population", ["token", "dim", "none"])
def test_cached_decode_equals_full_forward_for_other_populations(population: str) -> None:
    kinds = {
        "token": norm_noise(0.3, level="token"),
        "dim": norm_noise(0.3, spread="dim"),
        "none": NoPopulation(NoPopulation.Options()),
    }
    policy = tiny_policy(population=kinds[population])
    for rollout in written(policy, requests(policy)):
        with torch.no_grad():
            logprobs, _ = token_logprobs(policy, [rollout], [rollout.mind], 1.0)
        assert list(rollout.logprobs) == pytest.approx(logprobs[0].tolist(), abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_a_query_sees_its_keys_through_the_heads_that_share_them(dtype: torch.dtype, masked: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    queries, keys, values = (
        torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)
        for shape in ((5, 6, 4), (5, 2, 9, 4), (5, 2, 9, 3))
    )
    seen = torch.rand(5, 7, generator=draw) < 0.6
    seen[:, 0] = True
    bias = torch.zeros(5, 1, 1, 7, dtype=dtype).masked_fill_(~seen[:, None, None], -math.inf) if masked else None
    # As in a cache, of which a part is read.
    got = single(queries, keys[:, :, :7], values[:, :, :7], 0.3, bias)
    for row in range(5):
        kept = seen[row] if masked else torch.ones(7, dtype=torch.bool)
        for head in range(6):
            key, value = keys[row, head // 3, :7][kept], values[row, head // 3, :7][kept]
            expected = torch.softmax(0.3 * (key @ queries[row, head]).double(), -1) @ value.double()
            tolerance = 1e-12 if dtype == torch.float64 else 2e-2
            torch.testing.assert_close(got[row, head].double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_rollouts_of_the_base_model_are_those_of_generate(family: str) -> None:
    policy = tiny_policy(family)
    asked = [Request(encode(policy.model.tokenizer, problem), None, ("greedy", problem.id)) for problem in PROBLEMS]
    backend = HfBackend(policy, SamplingConfig(temperature=0.0, max_new_tokens=12))
    rollouts = [rollout for _, rollout in backend.rollouts(asked, "base")]
    network = tiny_network(family)
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt_ids])
        expected = network.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=1
        )[0, ids.shape[1] :]
        assert list(rollout.completion_ids) == expected.tolist()[: len(rollout.completion_ids)]


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float32_sampler_and_learner_agree(family: str) -> None:
    policy = tiny_policy(family, dtype=torch.float32)
    rollouts = written(policy, requests(policy), temperature=0.7)
    with torch.no_grad():
        logprobs, mask = token_logprobs(policy, rollouts, [r.mind for r in rollouts], 0.7)
    sampled = torch.tensor([value for r in rollouts for value in r.logprobs])
    assert float((logprobs[mask] - sampled).abs().max()) < 1e-4


@settings(max_examples=25, deadline=None)
@given(
    order=st.randoms(use_true_random=False),
    keep=st.integers(1, 24),
    max_rows=st.integers(1, 30),
    prefill_tokens=st.integers(1, 400),
)
def test_the_batch_does_not_change_what_is_written(
    order: random.Random, keep: int, max_rows: int, prefill_tokens: int
) -> None:
    policy = POLICY
    asked = list(enumerate(requests(policy)))
    order.shuffle(asked)
    chosen = asked[:keep]
    part = written(
        policy,
        [request for _, request in chosen],
        max_rows=max_rows,
        prefill_tokens=prefill_tokens,
        **MANY_STOPS,
    )
    assert_same(part, [EXPECTED[i] for i, _ in chosen])


POLICY = tiny_policy()
EXPECTED = written(POLICY, requests(POLICY), max_rows=1, **MANY_STOPS)


def test_early_stops_happen_in_that_test() -> None:
    lengths = {len(r.completion_ids) for r in EXPECTED}
    assert len(lengths) >= 3
    assert {r.finish_reason for r in EXPECTED} == {"stop", "length"}


@pytest.mark.parametrize(("kind", "readers"), [("mind", 3), ("completion", 1), ("none", 1)])
def test_a_prompt_is_read_once_for_all_who_read_it_alike(
    kind: str, readers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {
        "mind": norm_noise(0.3),
        "completion": norm_noise(0.3, scope="completion"),
        "none": NoPopulation(NoPopulation.Options()),
    }
    policy = tiny_policy(population=kinds[kind])
    tokens = []
    hidden = policy.hidden
    monkeypatch.setattr(policy, "hidden", lambda packed: tokens.append(len(packed.ids_N)) or hidden(packed))
    written(policy, requests(policy, minds=3, samples=4), max_new_tokens=1)
    prompts = [encode(policy.model.tokenizer, problem) for problem in PROBLEMS[:4]]
    shared = alike(prompts)
    assert shared > 2
    beginnings = {prompt[: i + 1] for prompt in prompts for i in range(len(prompt))}
    assert readers * len(beginnings) <= sum(tokens) <= readers * (sum(map(len, prompts)) - 3 * shared)
    tokens.clear()
    monkeypatch.setattr("ttrl_pop.packing.radix.PARTING_KEYS", 10**6)
    written(policy, requests(policy, minds=3, samples=4), max_new_tokens=1)
    assert sum(tokens) == readers * len(beginnings)


def test_noise_that_begins_behind_the_prompt_leaves_its_reading_to_the_mean_mind() -> None:
    policy = tiny_policy(population=norm_noise(0.3, scope="completion"))
    rollouts = written(policy, requests(policy))
    for rollout in rollouts:
        with torch.no_grad():
            logprobs, _ = token_logprobs(policy, [rollout], [rollout.mind], 1.0)
            (as_mean, *_), _ = token_logprobs(policy, [rollout], [MEAN], 1.0)
        assert list(rollout.logprobs) == pytest.approx(logprobs[0].tolist(), abs=1e-10)
        assert rollout.logprobs[0] == pytest.approx(float(as_mean[0]), abs=1e-10)
        if len(rollout.logprobs) > 1:
            assert abs(rollout.logprobs[-1] - float(as_mean[len(rollout.logprobs) - 1])) > 1e-6


def note_reading(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Prompt tokens of each forward from now on."""
    read: list[int] = []
    hidden = policy.hidden

    def noted(packed: Pack) -> torch.Tensor:
        read.extend([len(packed.ids_N)] * bool(packed.stems))
        return hidden(packed)

    monkeypatch.setattr(policy, "hidden", noted)
    return read


def test_a_forward_reads_as_many_prompt_tokens_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    read = note_reading(policy, monkeypatch)
    asked = requests(policy, minds=3)
    longest = max(len(request.prompt_ids) for request in asked)
    written(policy, asked, prefill_tokens=10**6, max_new_tokens=1)
    (whole,) = read
    # Beside its tokens a prompt counts the keys that are copied for it.
    enough = whole + len(asked) * (longest // KEYS)
    assert enough < sum(len(request.prompt_ids) for request in asked)
    for limit, forwards in ((longest, len(asked)), (2 * longest, len(asked) // 2), (enough, 1)):
        read.clear()
        written(policy, asked, prefill_tokens=limit, max_new_tokens=1)
        assert max(read) <= limit
        assert len(read) <= forwards


def test_where_memory_runs_out_fewer_go_on_and_write_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    expected = written(policy, requests(policy), **MANY_STOPS)
    write, seen = hf.KeyValueCache.write, []

    def scarce(cache: hf.KeyValueCache, *given: object) -> None:
        seen.append(cache.slots)
        if cache.slots > 5 and len(seen) > 5:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
        write(cache, *given)

    monkeypatch.setattr(hf.KeyValueCache, "write", scarce)
    # Read in parts, so that some prompts wait when it happens.
    sampling = SamplingConfig(max_new_tokens=7, prefill_tokens=100, **MANY_STOPS)
    backend = HfBackend(policy, sampling)
    assert backend.limits() == {}
    for _ in range(2):
        results = dict(backend.rollouts(requests(policy)))
        assert_same([results[i] for i in range(len(results))], expected)
    assert [slots for slots, _ in groupby(seen)] == [24, 12, 6, 3]
    assert backend.prefill_tokens == 100 // 8


def test_limits_stay_such_that_a_run_goes_on_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint's limits are 1 or more: a run that was lowered to 0 could not be resumed."""
    backend = HfBackend(policy := tiny_policy(), SamplingConfig(max_new_tokens=7, prefill_tokens=1))
    monkeypatch.setattr(hf, "draw", Failing(hf.draw))
    list(backend.rollouts(requests(policy)))
    assert backend.limits()["prefill_tokens"] == 1


def test_an_engine_with_the_limits_of_another_works_in_the_same_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    sampling = SamplingConfig(max_new_tokens=7, prefill_tokens=100, **MANY_STOPS)
    hidden = policy.hidden
    shapes: list[int] = []
    monkeypatch.setattr(policy, "hidden", lambda packed: shapes.append(len(packed.ids_N)) or hidden(packed))

    def forwards(backend: HfBackend) -> list[int]:
        shapes.clear()
        list(backend.rollouts(requests(policy)))
        return list(shapes)

    unhurt = forwards(HfBackend(policy, sampling))
    tired = HfBackend(policy, sampling)
    with monkeypatch.context() as scarce:
        scarce.setattr(hf, "draw", Failing(hf.draw))
        forwards(tired)
    again = HfBackend(policy, sampling)
    again.restore_limits(tired.limits())
    assert again.limits() == tired.limits()
    assert forwards(again) == forwards(tired) != unhurt


class Failing:
    """`function`, whose third call finds no memory."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls = 0

    def __call__(self, *given: Any) -> Any:
        self.calls += 1
        if self.calls == 3:
            raise MemoryError
        return self.function(*given)


def test_the_memory_for_keys_and_values_limits_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    asked = requests(policy)
    longest = max(len(request.prompt_ids) for request in asked) + 7
    # TinyLM: 2 layers × 2 heads × 4 wide × keys and values × 8 bytes.
    assert policy.cache_bytes_per_token == 2 * 2 * 4 * 2 * 8
    room = 5 * longest * policy.cache_bytes_per_token / hf.CACHE_SHARE
    monkeypatch.setattr(hf, "limit_bytes", lambda device: int(room) + 1)
    caches = note_caches(monkeypatch)
    assert_same(written(policy, asked, **MANY_STOPS), written(policy, asked, max_rows=5, **MANY_STOPS))
    assert [slots for slots, _ in caches] == [5, 5]


def test_one_long_prompt_does_not_narrow_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, limit = tiny_policy(), 7
    short = requests(policy)
    long = Request(tuple(3 + i % 50 for i in range(policy.model.context_length - limit)), short[0].mind, ("long",))
    asked = [*short[:5], long, *short[5:]]
    expected = written(policy, asked, **MANY_STOPS)
    fitting = 2 * policy.model.context_length // (max(len(request.prompt_ids) for request in short) + limit)
    assert 2 < fitting < len(short), "memory must be short"
    memory = (2 * policy.model.context_length + 1) * policy.cache_bytes_per_token / hf.CACHE_SHARE
    monkeypatch.setattr(hf, "limit_bytes", lambda device: memory)
    caches = note_caches(monkeypatch)
    assert_same(written(policy, asked, **MANY_STOPS), expected)
    assert caches == [(fitting, len(short[-1].prompt_ids) + limit), (1, policy.model.context_length)]
    # Where there is room enough, or nearly, they all go together.
    for factor in (1000, fitting):
        caches.clear()
        monkeypatch.setattr(hf, "limit_bytes", lambda device, factor=factor: factor * memory)
        written(policy, asked, **MANY_STOPS)
        assert len(caches) == 1


def note_caches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Slots and longest sequence of each cache from now on."""
    made: list[tuple[int, int]] = []
    cache = hf.KeyValueCache

    def noted(slots: int, longest: int) -> hf.KeyValueCache:
        made.append((slots, longest))
        return cache(slots, longest)

    monkeypatch.setattr(hf, "KeyValueCache", noted)
    return made


def test_looking_at_the_tokens_less_often_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for every in (2, 5, 50):
        monkeypatch.setitem(hf.CHECK_EVERY, "cpu", every)
        assert_same(written(POLICY, requests(POLICY), max_rows=6, **MANY_STOPS), EXPECTED)


def test_no_position_lies_behind_the_end_of_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    # GPT-2 has an embedding for each position, and none for further ones.
    policy = tiny_policy("gpt2")
    limit, mind = 7, Mind(5)
    long = tuple(3 + i % 50 for i in range(policy.model.context_length - limit))
    asked = [Request(prompt, mind, ("k", len(prompt))) for prompt in (long, (3,), (4, 5))]
    expected = written(policy, asked)
    assert {len(r.completion_ids) for r in expected} == {limit}
    monkeypatch.setitem(hf.CHECK_EVERY, "cpu", 50)
    assert_same(written(policy, asked), expected)


@pytest.mark.parametrize("samples", [1, 5, 12])
def test_trees_that_do_not_fit_into_the_free_slots_are_split(samples: int) -> None:
    policy = tiny_policy(population=NoPopulation(NoPopulation.Options()))
    asked = requests(policy, minds=1, samples=samples)
    expected = written(policy, asked, **MANY_STOPS)
    for rows in (2, 3, 7):
        assert_same(written(policy, asked, max_rows=rows, **MANY_STOPS), expected)


def test_samples_of_a_mind_differ_and_repeat() -> None:
    policy = tiny_policy()
    rollouts = written(policy, requests(policy))
    assert len({r.completion_ids for r in rollouts}) > len(rollouts) // 2
    assert_same(written(policy, requests(policy)), rollouts)


def test_stop_strings_cut_the_text_and_keep_the_tokens() -> None:
    policy = tiny_policy()
    free = written(policy, requests(policy), max_new_tokens=30)
    for rollout in written(policy, requests(policy), max_new_tokens=30, stop=("a", "3.")):
        index = next(
            i for i, r in enumerate(free) if r.completion_ids[: len(rollout.completion_ids)] == rollout.completion_ids
        )
        whole = decode(policy.model.tokenizer, rollout.completion_ids)
        if rollout.finish_reason == "stop" and rollout.completion_ids[-1] not in policy.model.eos_ids:
            assert whole.endswith(("a", "3."))
            assert rollout.text == whole[: -1 if whole.endswith("a") else -2]
        assert "a" not in rollout.text
        assert "3." not in rollout.text
        assert free[index].mind == rollout.mind


def test_a_stop_string_that_is_a_special_token_ends_a_completion() -> None:
    """As `<|im_end|>` for a base model: texts leave special tokens out, so that no text ever contains it."""
    policy = tiny_policy()
    policy.model.tokenizer.add_special_tokens({"additional_special_tokens": ["a"]})
    mark = policy.model.tokenizer.convert_tokens_to_ids("a")
    free = written(policy, requests(policy), max_new_tokens=30)
    assert sum(mark in rollout.completion_ids for rollout in free) > 2
    for rollout, whole in zip(
        written(policy, requests(policy), max_new_tokens=30, stop=("a", "3.")), free, strict=True
    ):
        ids = whole.completion_ids
        if "3." not in (until := decode(policy.model.tokenizer, ids[: ids.index(mark)] if mark in ids else ids)):
            assert rollout.completion_ids == (ids[: ids.index(mark) + 1] if mark in ids else ids)
            assert rollout.text == until
            assert rollout.finish_reason == ("stop" if mark in ids else whole.finish_reason)


def test_a_stop_string_with_a_special_token_in_it_is_refused() -> None:
    """No text holds it, so that every completion would run to the limit."""
    policy = tiny_policy()
    policy.model.tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>", "</think>", "!"]})
    with pytest.raises(UsageError, match=r"alone, got '<\|end\|>\\n': no text holds .* '<\|end\|>'; write it alone"):
        HfBackend(policy, SamplingConfig(stop=("<|end|>\n",)))
    for stop in ("<|end|>", "</think>\n", "Stop!"):
        HfBackend(policy, SamplingConfig(stop=(stop,)))


def test_a_stop_string_that_marks_thoughts_ends_a_completion_though_texts_keep_it() -> None:
    policy = tiny_policy()
    policy.model.tokenizer.add_special_tokens({"additional_special_tokens": ["</think>"]})
    mark = policy.model.tokenizer.convert_tokens_to_ids("</think>")
    backend = HfBackend(policy, SamplingConfig(stop=("</think>",)))
    ids = [*policy.model.tokenizer("12", add_special_tokens=False)["input_ids"], mark]
    assert not backend.ended(ids[:-1])
    assert backend.ended(ids)
    assert backend.rollout(requests(policy)[0], ids, [0.0] * 3, "stop", 0).text == "12"


def test_the_end_of_sequence_ends_a_completion_and_is_part_of_it() -> None:
    policy = tiny_policy()
    rollouts = written(policy, requests(policy, minds=8, samples=4), max_new_tokens=60)
    ended = [r for r in rollouts if r.finish_reason == "stop"]
    assert ended
    for rollout in rollouts:
        assert (rollout.completion_ids[-1] in policy.model.eos_ids) == (rollout.finish_reason == "stop")
        assert not set(rollout.completion_ids[:-1]) & policy.model.eos_ids
        assert "</s>" not in rollout.text
        assert len(rollout.logprobs) == len(rollout.completion_ids)


def test_tokens_are_drawn_from_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, -math.inf, 2.0]]).expand(40000, -1)
    uniforms = torch.rand(40000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for temperature in (1.0, 0.5, 2.0):
        tokens, logprobs = draw(logits, uniforms, temperature)
        expected = torch.softmax(logits[0] / temperature, -1)
        observed = torch.bincount(tokens, minlength=4) / len(tokens)
        torch.testing.assert_close(observed, expected, rtol=0, atol=0.01)
        torch.testing.assert_close(logprobs.exp(), expected[tokens])


def test_the_edges_of_the_unit_interval_select_possible_tokens() -> None:
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf], [-math.inf, 0.0, 0.0, -math.inf]])
    tokens, _ = draw(logits, torch.tensor([0.0, 1 - 1e-16], dtype=torch.float64), 1.0)
    assert tokens.tolist() == [1, 2]


def test_greedy_and_nucleus() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]]).expand(1000, -1)
    uniforms = torch.linspace(0, 0.999, 1000)
    tokens, logprobs = draw(logits, uniforms, 0.0)
    assert set(tokens.tolist()) == {1}
    torch.testing.assert_close(logprobs[0], torch.log_softmax(logits[0], -1)[1])
    # probabilities 0.032 0.644 0.087 0.237: the first two reach 0.8
    tokens, logprobs = draw(logits, uniforms, 1.0, top_p=0.8)
    assert set(tokens.tolist()) == {1, 3}
    assert float(logprobs.exp().unique().sum()) == pytest.approx(1.0)


def test_requests_with_and_without_a_mind_do_not_mix() -> None:
    policy = tiny_policy()
    asked = requests(policy)[:2]
    mixed = [asked[0], Request(asked[1].prompt_ids, None, ("x",))]
    with pytest.raises(ValueError, match="not both"):
        written(policy, mixed)


def test_groups_hold_minds_times_samples_in_order() -> None:
    session = tiny_session()
    minds = session.policy.population.spawn(0, 1, 3)
    groups = list(sample(session.backend, session.prompts, PROBLEMS, minds, 2, 0, 1))
    assert sorted(group.problem.index for group in groups) == list(range(len(PROBLEMS)))
    for group in groups:
        assert [r.mind for r in group.rollouts_G] == [m for m in minds for _ in range(2)]


@settings(max_examples=10, deadline=None)
@given(chosen=st.permutations(range(6)), count=st.integers(1, 6), minds=st.integers(1, 4))
def test_order_and_number_of_problems_do_not_change_the_rollouts_of_a_mind(
    chosen: list[int], count: int, minds: int
) -> None:
    session = SESSION
    problems = [PROBLEMS[i] for i in chosen[:count]]
    spawned = session.policy.population.spawn(0, 1, minds)
    for group in sample(session.backend, session.prompts, problems, spawned, 2, 0, 1):
        expected = EVERYTHING[group.problem.id].rollouts_G[: 2 * minds]
        assert_same(list(group.rollouts_G), list(expected))


SESSION = tiny_session()
EVERYTHING = {
    group.problem.id: group
    for group in sample(SESSION.backend, SESSION.prompts, PROBLEMS, SESSION.policy.population.spawn(0, 1, 4), 2, 0, 1)
}


def test_a_mind_is_the_same_in_another_population_object() -> None:
    one, other = (tiny_policy(population=norm_noise(0.3)) for _ in range(2))
    asked = [Request(encode(one.model.tokenizer, PROBLEMS[0]), Mind(123), ("k",))]
    assert_same(written(one, asked), written(other, asked))


def test_logits_that_are_not_finite_are_an_error_and_no_token() -> None:
    policy = tiny_policy()
    with torch.no_grad():
        policy.population.mu.fill_(math.nan)
    with pytest.raises(DivergenceError, match="not finite"):
        written(policy, requests(policy))


def test_a_backend_that_leaves_problems_out_is_an_error() -> None:
    class Lazy(HfBackend):
        def rollouts(self, *asked: Any) -> Iterator[tuple[int, Rollout]]:
            yield from sorted(super().rollouts(*asked))[:4]

    session = tiny_session(backend=Lazy)
    with pytest.raises(RuntimeError, match="left 5 of 6 problems"):
        list(sample(session.backend, session.prompts, PROBLEMS, session.policy.population.spawn(0, 1, 4), 1, 0, 1))


def test_the_meter_counts_tokens_as_they_are_written() -> None:
    class Watching(HfBackend):
        seen: ClassVar[list[tuple[int, int]]] = []

        def _decode(self, *arguments: Any) -> Any:
            self.seen.append((self.meter.rollouts, self.meter.tokens))
            return super()._decode(*arguments)

    session = tiny_session(backend=Watching, sampling__max_new_tokens=6)
    minds = session.policy.population.spawn(0, 1, 3)
    rollouts = [rollout for group in session.sample(PROBLEMS[:2], minds, 1, 1) for rollout in group.rollouts_G]
    assert Watching.seen == sorted(Watching.seen)
    assert Watching.seen[0] == (0, len(rollouts))
    assert session.backend.meter.rollouts == len(rollouts)
    assert session.backend.meter.tokens == sum(len(rollout.completion_ids) for rollout in rollouts)
