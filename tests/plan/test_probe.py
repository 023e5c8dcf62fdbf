"""The line through what was measured, on a clock that the work moves; and what the works come to on a tiny model."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import norm_noise, tiny_policy

from ttrl_pop.config_file import load_config
from ttrl_pop.model.size import PolicySize
from ttrl_pop.plan import probe
from ttrl_pop.plan.probe import Line, line_through, measure_speed, measured
from ttrl_pop.plan.work import Forwards

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("points", "line"),
    [
        ([(10, 5.0)], Line(0.0, 0.5)),
        ([(10, 5.0), (20, 7.0)], Line(3.0, 0.2)),
        ([(1, 50.0), (10, 5.0), (20, 7.0)], Line(3.0, 0.2)),
        ([(10, 1.0), (20, 7.0)], Line(0.0, 0.35)),
        ([(10, 5.0), (20, 4.0)], Line(4.0, 0.0)),
    ],
    ids=["one", "two", "last two", "none is negative", "none grows"],
)
def test_a_line_through_what_was_measured(points: list[tuple[int, float]], line: Line) -> None:
    found = line_through(points)
    assert (found.fixed, found.each) == pytest.approx((line.fixed, line.each))
    assert found.at(points[-1][0]) == pytest.approx(points[-1][1])


def sizes_and_line(
    monkeypatch: pytest.MonkeyPatch, most: int, seconds: float, busy: float = 1.0
) -> tuple[list[int], Line]:
    """Sizes that were tried, and their line, of work that takes 1 + size / 100 seconds; by the clock `busy` times as
    long, as others have the processor."""
    now = SimpleNamespace(wall=0.0, own=0.0)
    sizes: list[int] = []
    fake = SimpleNamespace(perf_counter=lambda: now.wall, process_time=lambda: now.own * torch.get_num_threads())
    monkeypatch.setattr(probe, "time", fake)

    def make(size: int) -> tuple[int, Callable[[], None]]:
        sizes.append(size)

        def work() -> None:
            now.own += 1 + size / 100
            now.wall += busy * (1 + size / 100)

        return size, work

    return sizes, measured(make, most, seconds, CPU)


def test_sizes_grow_up_to_the_largest_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, line = sizes_and_line(monkeypatch, 1600, 1e9)
    assert sizes == [100, 400, 1600]
    assert (line.fixed, line.each) == pytest.approx((1.0, 0.01))


@pytest.mark.parametrize(
    ("seconds", "busy", "expected"),
    [(29.0, 1.0, [100]), (31.0, 1.0, [100, 400]), (31.0, 3.0, [100, 400]), (31.0, 10.0, [100])],
    ids=["too short", "enough", "others have the processor", "for very long"],
)
def test_sizes_stop_growing_before_the_time_is_over(
    seconds: float, busy: float, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A size is done three times: 6 s are over after the first, and the next is taken to last four times as long.
    # Where the first time takes half of all, it is done once more alone.
    assert sizes_and_line(monkeypatch, 1600, seconds, busy)[0] == expected


def speed(
    policy: Any, learns: bool = True, layers: int = 2, wider: int = 1, first: int = 3, **overrides: Any
) -> probe.Speed:
    """Of a policy with `layers` layers and a vocabulary that is `wider` times as large; prompts begin with a number."""
    settings = {"population.minds": 4, "sampling.max_new_tokens": 5}
    config = load_config(None, {**settings, **{key.replace("__", "."): value for key, value in overrides.items()}})
    prompts = [tuple(range(first, first + length)) for length in (9, 11)]
    vocabulary = wider * policy.network.config.get_text_config().vocab_size
    size = PolicySize(layers, 0, vocabulary, weights=0, merged=0, laid_out=0, trained=0)
    return measure_speed(policy, config, Forwards(2048, 64, 128), size, prompts, slots=8, learns=learns, seconds=0.0)


def test_bytes_are_those_of_all_layers() -> None:
    two, twenty = (speed(tiny_policy(), layers=layers) for layers in (2, 20))
    assert two.cache_bytes == tiny_policy().cache_bytes_per_token
    assert twenty.cache_bytes == 10 * two.cache_bytes
    assert twenty.kept_bytes == pytest.approx(10 * two.kept_bytes)
    assert two.kept_bytes > 0


def test_lines_count_as_often_as_the_whole_has_layers_and_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "measured", lambda *_: Line(1.0, 2.0))
    monkeypatch.setattr(probe._Probe, "packing", lambda _: 0.25)
    monkeypatch.setattr(probe._Probe, "ending", lambda _: 0.5)
    found = speed(tiny_policy(), layers=20, wider=3)
    assert found.draw == found.score == Line(3.0, 6.0)
    assert found.read == found.learn == Line(10.0, 20.25)
    assert found.decode == Line(10.0 + 3.0, 20.0 + 6.0 + 0.5)


def test_prompts_may_have_tokens_that_a_part_of_the_vocabulary_has_not() -> None:
    found = speed(tiny_policy(), wider=1000, first=50_000)
    assert found.read.at(10) > 0
    assert found.learn is not None
    assert found.learn.at(10) > 0


def test_what_a_token_leaves_is_what_one_more_token_adds() -> None:
    config = load_config(None, {"sampling.max_new_tokens": 200})
    works = probe._Probe(tiny_policy(), config, [tuple(range(3, 12))], 128)
    (few, small), (many, large) = works._kept(50), works._kept(90)
    assert many - few == 40
    assert works.kept_bytes() == pytest.approx((large - small) / 40)
    assert works.kept_bytes() < 0.9 * large / many, "weights with their adapters in them are kept once"


def test_layers_that_are_computed_again_keep_less() -> None:
    kept = speed(tiny_policy()).kept_bytes
    assert 0 < speed(tiny_policy(), learn__checkpointing=True).kept_bytes < kept / 2


@pytest.mark.parametrize("scope", ["sequence", "completion"])
def test_all_is_measured_of_any_population(scope: str) -> None:
    found = speed(tiny_policy(population=norm_noise(0.1, scope=scope)))
    assert all(line is not None and line.at(10) > 0 for line in (found.decode, found.read, found.learn, found.score))
    assert speed(tiny_policy(), learns=False).learn is None
