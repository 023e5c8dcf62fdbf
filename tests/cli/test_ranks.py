"""Several processes do what one does, to the byte; what ends one of them ends all."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cli.commands import ended, final, write_lines
from safetensors.torch import load_file

from ttrl_pop.store import checkpoint, files
from ttrl_pop.store.directory import RunDirectory

START = Callable[..., Any]

SIGMA = ("population.options.sigma=auto", "population.options.target_kl=0.2", "population.options.target_flips=0.3")

CASES: dict[str, tuple[str, ...]] = {
    "dapo": (*SIGMA, "learn.updates_per_step=2", "learn.kl=0.01", "learn.kl_prior=0.01", "baseline=true"),
    "grpo": ("population.name=none", "population.options={}", "vote.labels=base", "population.samples_per_mind=2"),
    "dr_grpo": ("vote.labels=average", "learn.noise=mean-tis", "learn.schedule=cosine"),
    "gspo": (
        *("vote.weight=mind", "guard.flip_scaling=true", "guard.keep_minorities=true", "learn.token_budget=60"),
        *("holdout=0.5", "eval_every=1", "baseline=true"),
    ),
}
"""Loss → other settings."""


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


class Job:
    """A command in several processes, as torchrun would have started them; alone if `size` is 1."""

    def __init__(
        self,
        start: START,
        size: int,
        folder: Path,
        *arguments: object,
        stdin: object = os.devnull,
        **environment: object,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.outs = [folder / f"{rank}.out" for rank in range(size)]
        self.errs = [folder / f"{rank}.err" for rank in range(size)]
        for path in (*self.outs, *self.errs):
            path.unlink(missing_ok=True)
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": size}
        self.processes = [
            start(*arguments, stdout=out, stderr=err, stdin=stdin, **(environment | {"RANK": rank, "LOCAL_RANK": rank}))
            for rank, (out, err) in enumerate(zip(self.outs, self.errs, strict=True))
        ]

    def codes(self) -> list[int | None]:
        return [ended(process) for process in self.processes]

    def said(self, rank: int = 0) -> str:
        return self.errs[rank].read_text() if self.errs[rank].exists() else ""

    def signal(self, number: int, ranks: Sequence[int]) -> None:
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.kill(self.processes[rank].pid, number)


def arguments(place: Path, out: Path, *settings: str) -> list[object]:
    """A run in four shards whose groups disagree, so that all of them teach something."""
    settings = ("shards=4", "vote.extract=fakes:kind_of_letter", "population.minds=4", *settings)
    flags = [each for setting in settings for each in ("--set", setting)]
    return ["run", place / "p.jsonl", "--config", place / "c.toml", "--out", out, *flags]


def whole(out: Path) -> dict[str, Any]:
    """Everything that a run ends with but times and what it was told."""
    run = RunDirectory(out)
    last = run.checkpoint(checkpoint.latest(run) or 0)
    kept = [*(out / "rollouts").iterdir(), last / "state.json", last / "problems.jsonl", run.config]
    kept += [path for path in (run.baseline, out / "calibration.json") if path.exists()]
    return final(out) | {path.name: path.read_bytes() for path in kept}


@pytest.mark.parametrize(
    ("loss", "sizes"),
    [
        ("grpo", (1, 3)),
        pytest.param("dapo", (1, 2, 4), marks=pytest.mark.slow),
        pytest.param("dr_grpo", (1, 2), marks=pytest.mark.slow),
        pytest.param("gspo", (1, 4), marks=pytest.mark.slow),
    ],
)
def test_any_number_of_processes_gives_the_same_bytes(
    place: Path, start: START, tmp_path: Path, loss: str, sizes: Sequence[int]
) -> None:
    settings = (f"learn.loss={loss}", "population.options.decay=0.8", *CASES[loss])
    jobs = [
        Job(start, size, tmp_path / f"{size}", *arguments(place, tmp_path / f"run-{size}", *settings)) for size in sizes
    ]
    for job in jobs:
        assert set(job.codes()) == {0}, job.said()
    alone, *others = (whole(tmp_path / f"run-{size}") for size in sizes)
    assert sum(row["learn/groups_used"] for row in alone["metrics"]) > 4, "nothing was learned"
    for size, found in zip(sizes[1:], others, strict=True):
        assert found.keys() == alone.keys()
        assert [name for name in alone if found[name] != alone[name]] == [], size
    printed = jobs[0].outs[0].read_bytes()
    for job in jobs[1:]:
        assert job.outs[0].read_bytes() == printed
        assert all(path.read_bytes() == b"" for path in (*job.outs[1:], *job.errs[1:]))


def test_problems_held_out_may_have_the_ids_of_others(place: Path, start: START, tmp_path: Path) -> None:
    # Rows without ids are known by their numbers, in both files.
    rows = [json.loads(line) for line in (place / "p.jsonl").read_text().splitlines()]
    for name, part in (("train", rows[:4]), ("held", rows[4:])):
        write_lines(tmp_path / f"{name}.jsonl", [{"prompt": row["prompt"]} for row in part])
    settings = ("holdout=" + str(tmp_path / "held.jsonl"), "eval_every=1", "baseline=true")
    alone, two = (
        Job(
            *(start, size, tmp_path / f"{size}", "run", tmp_path / "train.jsonl"),
            *arguments(place, tmp_path / f"run-{size}", *settings)[2:],
        )
        for size in (1, 2)
    )
    assert (alone.codes(), two.codes()) == ([0], [0, 0]), two.said()
    wanted, found = (whole(tmp_path / f"run-{size}") for size in (1, 2))
    assert [name for name in wanted if found[name] != wanted[name]] == []
    held = [(tmp_path / f"run-{size}" / "holdout.answers.jsonl").read_text() for size in (1, 2)]
    assert held[0] == held[1] != ""


def test_standard_input_is_read_once_and_eval_and_sample_say_the_same(
    place: Path, start: START, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert Job(start, 1, tmp_path / "j", *arguments(place, run, "answers=false")).codes() == [0]
    commands: dict[str, list[object]] = {
        "eval": ["eval", "-", "--gold", place / "gold.jsonl", "--run", run, "--compare"],
        "sample": ["sample", "-", "--run", run],
    }
    for name, command in commands.items():
        alone, two = (
            Job(start, size, tmp_path / f"{name}{size}", *command, "--ranks", size, stdin=place / "p.jsonl")
            for size in (1, 2)
        )
        assert (alone.codes(), two.codes()) == ([0], [0, 0]), two.said()
        assert two.outs[0].read_text() == alone.outs[0].read_text() != ""
        assert two.outs[1].read_text() == two.said(1) == ""


STUDY = """
[settings]
shards = 2
steps = 2
baseline = true
backend = "cli.several:Lone"
vote.extract = "fakes:kind_of_letter"
population.minds = 4
[arms.majority]
[arms.coin]
vote.reward = "coin"
"""


def test_a_study_says_the_same_in_several_processes_which_hold_one_model_at_a_time(
    place: Path, start: START, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(STUDY)
    given = [tmp_path / "mine.toml", place / "p.jsonl", "--gold", place / "gold.jsonl", "--config", place / "c.toml"]
    alone, two = (
        Job(start, size, tmp_path / f"{size}", "study", *given, *("--seeds", 2), "--out", tmp_path / f"study-{size}")
        for size in (1, 2)
    )
    assert (alone.codes(), two.codes()) == ([0], [0, 0]), two.said()
    assert two.outs[0].read_text() == alone.outs[0].read_text() != ""
    assert two.outs[1].read_text() == two.said(1) == ""
    for cell in ("majority-0", "coin-0", "majority-1", "coin-1"):
        found, wanted = (whole(tmp_path / f"study-{size}" / cell) for size in (2, 1))
        assert [name for name in wanted if found[name] != wanted[name]] == []
    again = Job(start, 2, tmp_path / "again", "study", "--resume", tmp_path / "study-1", "--ranks", 2)
    assert (again.codes(), again.outs[0].read_text()) == ([0, 0], alone.outs[0].read_text()), again.said()


@pytest.mark.slow
def test_a_study_whose_process_was_killed_goes_on_with_another_number_of_them(
    place: Path, start: START, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(STUDY.replace("shards = 2\n", "").replace("Lone", "Killed"))
    given = ["study", tmp_path / "mine.toml", place / "p.jsonl", "--config", place / "c.toml", "--seeds", 1, "--out"]
    killed = Job(start, 2, tmp_path / "killed", *given, tmp_path / "s")
    assert set(killed.codes()) == {1, -9}, killed.said()
    assert (
        killed.said().count("another process of this run was killed, or its machine is gone; saved up to step 1") == 1
    )
    found = Job(start, 1, tmp_path / "found", "study", "--resume", tmp_path / "s")
    alone = Job(start, 1, tmp_path / "alone", *given, tmp_path / "whole", "--set", "shards=2")
    assert (found.codes(), alone.codes()) == ([0], [0]), found.said() + alone.said()
    assert found.outs[0].read_text() == alone.outs[0].read_text() != ""


def test_codes_that_the_first_process_fits_are_those_of_all(place: Path, start: START, tmp_path: Path) -> None:
    options = "{bits = 4, rollouts = 4, steps = 4, encoder_width = 16, least_gap = 0.0}"
    settings = ("population.name=latent", f"population.options={options}", "baseline=true")
    alone, three = (
        Job(start, size, tmp_path / f"{size}", *arguments(place, tmp_path / f"run-{size}", *settings))
        for size in (1, 3)
    )
    assert (alone.codes(), three.codes()) == ([0], [0, 0, 0]), three.said()
    found, wanted = (whole(tmp_path / f"run-{size}") for size in (3, 1))
    assert len({row["population/reach"] for row in wanted["metrics"]}) > 1, "what codes add is learned"
    assert [name for name in wanted if found[name] != wanted[name]] == []
    fits = [(tmp_path / f"run-{size}" / "fit" / "latent.safetensors").read_bytes() for size in (1, 3)]
    assert fits[0] == fits[1]


@pytest.mark.parametrize(
    ("engine", "codes", "line"),
    [
        ("Refusing", {2}, "ttrl-pop: process 1: not with me; saved up to step 1; go on with: "),
        ("Broken", {1}, "ttrl-pop: process 1: KeyError: 'gone'; its traceback stands above; saved up to step 1"),
        ("Changed", {1}, "ttrl-pop: process 1: its weights are not those of the first process"),
        ("Killed", {1, -9}, "ttrl-pop: another process of this run was killed, or its machine is gone; saved up to"),
    ],
)
def test_what_ends_one_process_ends_all_with_one_line(
    place: Path, start: START, tmp_path: Path, engine: str, codes: set[int], line: str
) -> None:
    began = time.monotonic()
    job = Job(start, 2, tmp_path / "j", *arguments(place, tmp_path / "run"), "--backend", f"cli.several:{engine}")
    assert set(job.codes()) == codes, job.said()
    assert time.monotonic() - began < 30
    lines = [each for rank in (0, 1) for each in job.said(rank).splitlines() if each.startswith("ttrl-pop")]
    assert len(lines) == 1
    assert lines[0].startswith(line)
    assert checkpoint.latest(RunDirectory(tmp_path / "run")) == 1
    assert job.said(1).startswith("Traceback") if engine == "Broken" else job.said(1) == ""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(0, 1), (1,), (0,)])
def test_a_signal_anywhere_ends_all_and_another_number_of_processes_goes_on(
    place: Path, start: START, tmp_path: Path, ranks: Sequence[int]
) -> None:
    out = tmp_path / "run"
    command = [*arguments(place, out), "--resume-or-new"]
    job = Job(start, 2, tmp_path / "j", *command, "--backend", "cli.several:Slow", TTRL_POP_SLOW=1)
    while "third" not in job.said():
        time.sleep(0.05)
        assert job.processes[0].is_alive(), job.said()
    job.signal(signal.SIGINT, ranks)
    codes = job.codes()
    assert codes[0] == (130 if 0 in ranks else 1)
    # What the first has left word with is gone with it here; under torchrun it stays, and the code is 130.
    assert codes[1] == (-signal.SIGINT if 1 in ranks else 1)
    assert job.said().count("saved up to step 2; go on with: ttrl-pop run --resume") == 1
    again = Job(start, 3, tmp_path / "again", *command)
    assert set(again.codes()) == {0}, again.said()
    alone = Job(start, 1, tmp_path / "alone", *arguments(place, tmp_path / "whole"))
    assert set(alone.codes()) == {0}, alone.said()
    found, wanted = whole(out), whole(tmp_path / "whole")
    # The engine stands in it by the name under which the run began.
    assert [name for name in wanted if found[name] != wanted[name]] == ["config.toml"]


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_step_sends_one_gradient_one_set_of_weights_texts_and_nothing_else(
    place: Path, start: START, tmp_path: Path, size: int
) -> None:
    out = tmp_path / "run"
    settings = ("learn.lora.rank=16", "answers=false", "steps=4")
    job = Job(start, size, tmp_path / "j", *arguments(place, out, *settings), "--backend", "cli.several:Counted")
    assert set(job.codes()) == {0}, job.said()
    sent = [re.findall(r"^sent (\d+) (\d+) (\d+)$", job.said(rank), re.MULTILINE) for rank in range(size)]
    calls = 4 // size
    tensors, messages, wire = (
        [[int(after[kind]) - int(before[kind]) for before, after in pairwise(each[::calls])] for each in sent]
        for kind in range(3)
    )
    folder = RunDirectory(out).checkpoint(4)
    adapter = sum(value.nbytes for value in load_file(folder / "adapter" / "adapter_model.safetensors").values())
    shared = sum(value.nbytes for value in load_file(folder / "population.safetensors").values())
    scale = 4
    assert tensors[0] == [adapter + shared] * 3, "the first sends the weights"
    assert tensors[1:] == [[adapter + shared - scale] * 3] * (size - 1), "each other one sends a gradient"
    rollouts = [[*files.read_lines(path)] for path in sorted((out / "rollouts").iterdir())]
    assert len(rollouts) == 4
    for step in range(3):
        texts = sum(each[step] for each in messages)
        told = sum(each[step] for each in wire) - sum(each[step] for each in tensors)
        # Everybody's message is as long as the longest, and says first how long it is.
        assert texts < told < 1.5 * texts
        assert texts < 4 * len(json.dumps(rollouts[step]))


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_with_others_to_the_same_bytes(
    place: Path, start: START, tmp_path: Path
) -> None:
    settings = ("steps=40", "learn.updates_per_step=2", "vote.labels=average", "learn.schedule=cosine")
    out, rng, kills = tmp_path / "run", random.Random(0), 0
    command = [*arguments(place, out, *SIGMA, *settings), "--resume-or-new"]
    while True:
        size = rng.choice((2, 3, 4)) if kills < 10 else 2
        job = Job(start, size, tmp_path / "j", *command)
        if kills < 10:
            deadline, began = rng.uniform(0.5, 6.0), time.monotonic()
            while time.monotonic() < began + deadline and job.processes[0].is_alive():
                time.sleep(0.02)
            if job.processes[0].is_alive():
                job.signal(signal.SIGKILL, [rng.randrange(size)])
                kills += 1
                # As a launcher does.
                time.sleep(0.1)
                job.signal(signal.SIGTERM, range(size))
        # Seconds, where nothing else is busy.
        ends = time.monotonic() + 120
        codes = job.codes()
        assert time.monotonic() < ends, codes
        if set(codes) == {0}:
            break
        assert kills <= 10
    assert kills > 2, "the run was over before it was killed"
    assert Job(start, 1, tmp_path / "alone", *arguments(place, tmp_path / "whole", *SIGMA, *settings)).codes() == [0]
    found, wanted = whole(out), whole(tmp_path / "whole")
    assert [name for name in wanted if found[name] != wanted[name]] == []


@pytest.mark.slow
def test_ranks_starts_the_processes_and_ends_as_they_do(place: Path, start: START, tmp_path: Path) -> None:
    def typed(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "ttrl_pop", *map(str, arguments)]
        with (place / "p.jsonl").open() as stdin:
            return subprocess.run(
                command, stdin=stdin, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )

    sampling = ("sample", "-", "--config", place / "c.toml", "--set", "shards=2", "--quiet")
    alone = Job(start, 1, tmp_path / "j", *sampling, stdin=place / "p.jsonl")
    assert alone.codes() == [0]
    two = typed(*sampling, "--ranks", 2)
    assert (two.returncode, two.stdout, two.stderr) == (0, alone.outs[0].read_text(), "")
    wrong = typed("sample", tmp_path / "nowhere.jsonl", "--ranks", 2)
    assert (wrong.returncode, wrong.stdout, len(wrong.stderr.splitlines())) == (2, "", 1)
    assert wrong.stderr.startswith("ttrl-pop: ")
