"""The model of clusters: what must hold of it whatever the rates, and what was measured."""

import json
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import cluster
from benchmarks.cluster_model import (
    Asked,
    Rates,
    adding,
    drawn,
    elapsed,
    failures,
    learning,
    prompts,
    rows_by_shard,
    step,
    writing,
)
from ttrl_pop.ranks.shards import enough_for
from ttrl_pop.store import files

ROOT = Path(__file__).parent.parent

FREE = Rates(
    decode=((1, 1e-3),),
    decode_floor=0.0,
    slots=10_000,
    prefill=1e5,
    learner=1e4,
    learner_floor=0.0,
    learner_batch=1000,
    update=0.0,
    trained_bytes=0.0,
    digest=1.0,
    vote=0.0,
    text_bytes=0.0,
    pack=0.0,
    report=0.0,
    save=0.0,
    start=0.0,
    latency=0.0,
)
"""An engine that takes as long as there are tokens, and others that cost nothing to talk to."""

LENGTHS = st.lists(st.integers(1, 60), min_size=4, max_size=4)
PROBLEMS = st.lists(LENGTHS, min_size=1, max_size=6)


def asked(problems: list[list[int]], prompt: int = 10) -> list[Asked]:
    return [Asked(prompt, tuple(lengths)) for lengths in problems]


@given(PROBLEMS, st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from(["minds", "problems"]))
def test_shards_hold_each_completion_once_and_are_even(problems: list[list[int]], count: int, cut: Any) -> None:
    parts = rows_by_shard(asked(problems), count, cut)
    found = sorted((row.problem, row.member, row.length) for part in parts for row in part)
    assert found == [(p, m, length) for p, lengths in enumerate(problems) for m, length in enumerate(lengths)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    # What is written and read is the same for any number of shards, and so is the time of an engine by tokens.
    seconds = sum(writing(part, FREE, "worst") for part in parts)
    assert seconds == pytest.approx(1e-3 * sum(map(sum, problems)))
    assert sum(map(prompts, parts)) == 40 * len(problems)


def test_writing_by_hand() -> None:
    (rows,) = rows_by_shard([Asked(1, (3, 1, 2))], 1)
    # Two at once: one step of both, then the third beside the first for two steps.
    assert writing(rows, replace(FREE, decode=((1, 1.0), (2, 1.5)), slots=2), "worst") == 4.5
    # All at once: a step of three, beyond what was measured, then of two, then of one.
    assert writing(rows, replace(FREE, decode=((1, 1.0), (2, 1.5))), "worst") == 2.25 + 1.5 + 1.0
    few = replace(FREE, decode=((4, 2.0),), decode_floor=0.8)
    assert (few.decode_step(1, "best"), few.decode_step(2, "best"), few.decode_step(1, "worst")) == (0.8, 1.0, 2.0)


def test_learning_by_hand() -> None:
    rates = replace(FREE, learner_floor=0.09)
    assert learning(0, rates) == 0.0
    assert learning(10, rates) == 0.09
    assert learning(1000, rates) == pytest.approx(0.1)
    assert learning(1001, rates) == pytest.approx(0.18)


@pytest.mark.parametrize("gpus", [1, 2, 8, 64, 512])
def test_equal_lengths_and_free_talk_lose_nothing(gpus: int) -> None:
    problems = asked([[7] * 16] * 64)
    one, several = step(problems, 1, 1, FREE), step(problems, gpus, gpus, FREE)
    assert gpus * several.seconds == pytest.approx(one.seconds)
    assert several.idle == pytest.approx(0.0)


def test_of_three_processes_one_has_half_of_four_shards_and_two_wait_for_it() -> None:
    problems = asked([[7] * 16] * 64)
    one, three = step(problems, 1, 1, FREE), step(problems, 3, 4, FREE)
    assert three.seconds == pytest.approx(one.seconds / 2)
    assert three.idle == pytest.approx(three.seconds / 3)


RATES = st.builds(
    lambda rows, seconds, floor, learner_floor, batch, cost: replace(
        FREE,
        decode=((rows, seconds),),
        decode_floor=floor * seconds,
        learner_floor=learner_floor,
        learner_batch=batch,
        **dict.fromkeys(("vote", "report", "pack", "latency", "update", "trained_bytes", "text_bytes"), cost),
    ),
    rows=st.integers(1, 64),
    seconds=st.floats(1e-3, 1.0),
    floor=st.floats(0.0, 1.0),
    learner_floor=st.floats(0.0, 1.0),
    batch=st.integers(1, 500),
    cost=st.floats(0.0, 0.1),
)


@given(PROBLEMS, RATES, st.sampled_from([2, 3, 4, 7, 8]), st.sampled_from(["worst", "best"]))
def test_no_cluster_is_faster_than_its_gpus_nor_than_its_longest_completion(
    problems: list[list[int]], rates: Rates, gpus: int, narrow: Any
) -> None:
    some = asked(problems * 2)
    one, several = step(some, 1, 1, rates, narrow), step(some, gpus, enough_for(gpus), rates, narrow)
    assert one.seconds <= gpus * several.seconds * (1 + 1e-9)
    assert several.sample >= max(map(max, problems)) * rates.decode_step(1, narrow) * (1 - 1e-9)
    assert 0 <= several.idle <= several.seconds
    assert step(some, gpus, 8, rates, "best").seconds <= step(some, gpus, 8, rates, "worst").seconds * (1 + 1e-9)


def test_gradients_are_added_level_by_level() -> None:
    rates = replace(FREE, latency=1.0, trained_bytes=10.0, inside=10.0, between=5.0, per_machine=4)
    assert [adding([0.0] * size, rates)[0] for size in (1, 2, 4, 8, 16)] == [0, 2, 4, 7, 10]
    assert adding([0.0, 0.0, 0.0, 9.0], rates)[0] == 9 + 2 + 2
    # Three processes: the first two, then the third.
    assert adding([0.0, 0.0, 5.0], rates)[0] == 7.0


STEPS = st.lists(st.integers(1, 20).map(float), min_size=1, max_size=4)
MOMENTS = st.lists(st.integers(0, 400).map(lambda number: number + 0.5), max_size=12).map(sorted)


@settings(max_examples=300)
@given(
    STEPS, st.integers(1, 3), st.integers(0, 5), st.integers(0, 30), st.integers(1, 300), MOMENTS, st.integers(0, 400)
)
def test_more_failures_never_end_a_run_sooner(
    steps: list[float], every: int, save: int, start: int, work: int, moments: list[float], another: int
) -> None:
    fewer = elapsed(steps, every, save, start, work, moments)
    more = elapsed(steps, every, save, start, work, sorted([*moments, another + 0.5]))
    assert work <= fewer <= more
    lost = start + every * max(steps) + save
    assert fewer <= work + len(moments) * lost
    assert elapsed(steps, every, save, start, work, []) == work


def test_failures_by_hand() -> None:
    # Checkpoints are at 4, 8, 12, …: at 9 the second is kept, at 10 the run still starts, at 13 it starts anew.
    assert elapsed([2.0, 1.0], 2, 1.0, 2.0, 20.0, [9.0]) == 9 + 2 + (20 - 8)
    assert elapsed([2.0, 1.0], 2, 1.0, 2.0, 20.0, [9.0, 10.0]) == 10 + 2 + (20 - 8)
    assert elapsed([2.0, 1.0], 2, 1.0, 2.0, 20.0, [9.0, 14.0]) == 14 + 2 + (20 - 8)
    assert elapsed([2.0, 1.0], 2, 1.0, 2.0, 20.0, [9.0, 15.5]) == 15.5 + 2 + (20 - 12)
    assert elapsed([2.0, 1.0], 2, 1.0, 2.0, 20.0, [20.0, 21.0]) == 20.0
    # Three steps to a checkpoint, of which two kinds take turns: at 4 + 1, then at 9 + 2.
    assert elapsed([2.0, 1.0], 3, 0.0, 0.0, 20.0, [8.0]) == 8 + (20 - 5)


def test_failures_cost_what_the_formula_says() -> None:
    """Daly (2006), equation 13: (e^((τ + δ) / M) − 1) · M · e^(R / M) a segment."""
    segment, save, start, mean_time, gpus, segments = 9.0, 1.0, 5.0, 320.0, 8, 20_000
    every = [elapsed([segment], 1, save, start, 10.0 * segments, failures(gpus, mean_time, seed)) for seed in range(8)]
    mean = mean_time / gpus
    wanted = segments * (math.exp((segment + save) / mean) - 1) * mean * math.exp(start / mean)
    assert np.mean(every) == pytest.approx(wanted, rel=0.01)
    assert failures_of(1) == failures_of(1) != failures_of(2)


def failures_of(seed: int) -> list[float]:
    return [*islice(failures(4, 100.0, seed), 5)]


def test_problems_are_drawn_with_their_own_lengths() -> None:
    known = [Asked(5, (1, 2, 3, 4)), Asked(6, (10, 20, 30, 40))]
    found = drawn(known, 50, 4, 0)
    assert found == drawn(known, 50, 4, 0) != drawn(known, 50, 4, 1)
    assert {(one.prompt, tuple(sorted(one.lengths))) for one in found} == {(o.prompt, o.lengths) for o in known}
    assert len({one.lengths for one in found}) > 10
    assert {len(one.lengths) for one in drawn(known, 5, 16, 0)} == {16}


@pytest.fixture
def lengths(tmp_path: Path) -> Path:
    path = tmp_path / "lengths.jsonl"
    rows = [{"id": f"{n}", "prompt_tokens": 9, "lengths": [n + 1, 2 * n + 1]} for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[list[dict[str, Any]], str]:
    assert cluster.main([str(each) for each in arguments]) == 0
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


SMALL = ("--problems", 4, 64, "--gpus", 1, 4, "--rollouts", 2, "--steps", 2)


def test_rows_and_table(capsys: pytest.CaptureFixture[str], lengths: Path, tmp_path: Path) -> None:
    rows, table = printed(capsys, "--lengths", lengths, *SMALL, "--hours", 0)
    clusters = [row for row in rows if row["kind"] == "cluster"]
    assert [(row["gpus"], row["problems"]) for row in clusters] == [(1, 4), (4, 4), (1, 64), (4, 64)]
    assert all(row["efficiency"] == row["with_failures"] == [1, 1] for row in clusters if row["gpus"] == 1)
    for row in clusters:
        worst, best = row["efficiency"]
        assert 0 < worst <= best <= 1
        for parts, seconds in zip(row["parts"], row["seconds"], strict=True):
            assert sum(parts.values()) + cluster.H200.save == pytest.approx(seconds)
    assert next(row["problems"][0] for row in rows if row["kind"] == "needs") == 4
    assert all(limit in table for limit in rows[-1]["what"])
    assert printed(capsys, "--lengths", lengths, *SMALL, "--hours", 0) == (rows, table)
    failing, _ = printed(capsys, "--lengths", lengths, *SMALL, "--hours", 1)
    assert all(row["with_failures"][0] < row["efficiency"][0] for row in failing if row["kind"] == "cluster")
    (tmp_path / "rates.json").write_text(json.dumps(rows[0]["rates"]))
    assert printed(capsys, "--lengths", lengths, *SMALL, "--hours", 0, "--rates", tmp_path / "rates.json")[0] == rows


def test_lengths_of_a_run_and_of_rollouts(tmp_path: Path) -> None:
    rollouts = [
        {"id": name, "prompt_tokens": 7, "completion_ids": [1] * length}
        for name, length in (("a", 3), ("a", 5), ("b", 2), ("b", 4), ("cut", 1))
    ]
    (tmp_path / "run" / "rollouts").mkdir(parents=True)
    for number in (1, 2):
        files.write_lines(tmp_path / "run" / "rollouts" / f"step_{number:04}.jsonl.zst", rollouts)
    assert cluster.known_lengths(tmp_path / "run") == [Asked(7, (3, 5)), Asked(7, (2, 4))] * 2
    files.write_lines(tmp_path / "r.jsonl", rollouts)
    assert cluster.known_lengths(tmp_path / "r.jsonl") == [Asked(7, (3, 5)), Asked(7, (2, 4))]
    (tmp_path / "other.jsonl").write_text('{"id": "a"}\n')
    for name in ("other.jsonl", "nothing"):
        with pytest.raises(SystemExit, match="--lengths"):
            cluster.known_lengths(tmp_path / name)
    assert len(cluster.known_lengths(cluster.LENGTHS)) == 24


def test_rates_of_one_stay_give_the_step_measured_in_another() -> None:
    measured = map(json.loads, (ROOT / "dev" / "gpu" / "measured" / "h200.jsonl").read_text().splitlines())
    (row,) = (
        r for r in measured if r["run"] == "2026-11-27 c" and r.get("model") == "1.5B" and r.get("form") == "16 x 1"
    )
    found = step([Asked(4, (row["new_tokens"],) * 16)] * 16, 1, 1, cluster.H200)
    assert found.sample == pytest.approx(row["rollouts"], rel=0.1)
    assert found.gradient == pytest.approx(row["learner"], rel=0.1)
