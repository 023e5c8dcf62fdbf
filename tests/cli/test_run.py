"""Commands on a tiny model, through the command line: what they print, what they keep, and how they end."""

import errno
import gc
import io
import json
import multiprocessing
import os
import pty
import re
import resource
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fakes import PROBLEMS, ROOT, ScriptedBackend, save_tiny
from typer.testing import CliRunner, Result

from ttrl_pop.cli import opening
from ttrl_pop.cli import run as commands
from ttrl_pop.cli.app import app
from ttrl_pop.cli.given import Given
from ttrl_pop.cli.run import LARGE_SET
from ttrl_pop.errors import UsageError
from ttrl_pop.run import collapse
from ttrl_pop.sample.backend import Request
from ttrl_pop.sample.hf.backend import HfBackend
from ttrl_pop.store import checkpoint, files
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.types import Rollout

pytestmark = pytest.mark.slow

STEPS = 3
CONFIG = """
model = {model}
steps = 3
problems_per_step = 4
[population]
minds = 3
[population.options]
sigma = 0.3
[sampling]
max_new_tokens = 4
temperature = 2.0
[vote]
grader = "exact"
[learn]
lr = 1e-2
mask_truncated = false
[learn.lora]
rank = 2
"""
GOLD = {"p0": "56", "p1": "36", "p2": "16", "p3": "132", "p4": "45", "p5": "200"}


def ttrl(*arguments: object, stdin: bytes | None = None, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin, catch_exceptions=False)
    assert result.exit_code == code, result.stderr
    return result


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def final(out: Path) -> dict[str, Any]:
    """What a run ends with: weights and answers to the byte, metrics without times."""
    run = RunDirectory(out)
    step = checkpoint.latest(run)
    assert step is not None
    folder = run.checkpoint(step)
    metrics = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in files.read_lines(run.metrics)]
    return {
        "step": step,
        "adapter": (folder / "adapter" / "adapter_model.safetensors").read_bytes(),
        "population": (folder / "population.safetensors").read_bytes(),
        "optimizer": (folder / "optimizer.safetensors").read_bytes(),
        "answers": run.answers.read_bytes(),
        "metrics": metrics,
    }


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, problems, gold answers and a configuration."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny(folder / "tiny")
    write_lines(folder / "p.jsonl", [{"id": p.id, "prompt": p.prompt} for p in PROBLEMS])
    write_lines(folder / "gold.jsonl", [{"id": i, "answer": a} for i, a in GOLD.items()])
    (folder / "c.toml").write_text(CONFIG.format(model=json.dumps(str(folder / "tiny"))))
    return folder


@pytest.fixture(scope="module")
def trained(place: Path) -> tuple[Path, Result]:
    """A run with gold answers, and what it printed."""
    out = place / "trained"
    return out, run(place, out, "--gold", place / "gold.jsonl", "--set", "baseline=true")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(place: Path, out: Path, *more: object, code: int = 0) -> Result:
    return ttrl("run", place / "p.jsonl", "--config", place / "c.toml", "--out", out, *more, code=code)


# --- run ---


def test_run_prints_an_answer_for_each_problem_and_talks_on_stderr(trained: tuple[Path, Result]) -> None:
    out, result = trained
    answers = rows_of(result.stdout)
    assert [row["id"] for row in answers] == [p.id for p in PROBLEMS]
    assert all(row["rollouts"] == 3 and row["gold"] == GOLD[row["id"]] for row in answers)
    assert all(row["correct"] == (row["answer"] == row["gold"]) for row in answers)
    assert result.stdout == RunDirectory(out).answers.read_text()
    assert [line.split()[1] for line in result.stderr.splitlines() if line.startswith("step ")] == ["1/3", "2/3", "3/3"]
    for path in ("metrics.jsonl", "answers.jsonl", "checkpoints/step_0003/adapter"):
        assert str(out / path) in result.stderr.splitlines()


def test_the_summary_says_which_labels_were_learned_and_lost(
    place: Path, trained: tuple[Path, Result], copied: Path
) -> None:
    run_dir = RunDirectory(copied)
    ids = [row["id"] for row in rows_of(trained[1].stdout)]
    for path, right in ((run_dir.baseline, "100100"), (run_dir.answers, "110110")):
        rows = [{**row, "correct": bool(int(c))} for row, c in zip(files.read_lines(path), right, strict=True)]
        assert [row["id"] for row in rows] == ids
        files.write_lines(path, rows)
    said = ttrl("run", "--resume", copied).stderr.splitlines()
    assert said.count("labels: learned 2, kept 2, lost 0, never 2") == 1
    assert sum(line.startswith("labels: ") for line in trained[1].stderr.splitlines()) == 1
    for path in (run_dir.baseline, run_dir.answers):
        without = [{k: v for k, v in row.items() if k not in ("gold", "correct")} for row in files.read_lines(path)]
        files.write_lines(path, without)
    assert "labels: " not in ttrl("run", "--resume", copied).stderr


def test_without_gold_nothing_is_said_about_accuracy(place: Path, tmp_path: Path) -> None:
    result = run(place, tmp_path / "run")
    assert "accuracy" not in result.stderr
    assert not {"gold", "correct", "accuracy"} & set(rows_of(result.stdout)[0])
    assert all(row["rollout/accuracy"] is None for row in files.read_lines(tmp_path / "run" / "metrics.jsonl"))


def test_runs_are_numbered_where_no_directory_is_named(place: Path, tmp_path: Path) -> None:
    problems = (place / "p.jsonl").read_bytes()
    arguments = ("--config", place / "c.toml", "--steps", 1, "--quiet")
    (tmp_path / "runs" / "p-2").mkdir(parents=True)
    for _ in range(2):
        ttrl("run", place / "p.jsonl", *arguments)
    ttrl("run", "-", *arguments, stdin=problems)
    made = sorted(path.name for path in (tmp_path / "runs").iterdir() if (path / "answers.jsonl").exists())
    assert made == ["p-1", "p-3", "stdin-1"]
    assert len({(tmp_path / "runs" / name / "answers.jsonl").read_bytes() for name in made}) == 1


def test_quiet_leaves_stderr_empty(place: Path, tmp_path: Path) -> None:
    for command, more in (("run", ("--out", tmp_path / "run")), ("eval", ()), ("sample", ())):
        result = ttrl(command, place / "p.jsonl", "--config", place / "c.toml", "--quiet", *more)
        assert result.stderr == ""
        assert rows_of(result.stdout)


def test_the_saved_configuration_gives_the_same_run_again(
    place: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    out, _ = trained
    again = tmp_path / "again"
    gold = place / "gold.jsonl"
    ttrl("run", place / "p.jsonl", "--gold", gold, "--config", out / "config.toml", "--out", again, "--quiet")
    assert final(again) == final(out)
    assert (again / "config.toml").read_bytes() == (out / "config.toml").read_bytes()


def test_gold_answers_do_not_reach_the_learner(place: Path, trained: tuple[Path, Result], tmp_path: Path) -> None:
    weights = ("adapter", "population", "optimizer")
    right = final(trained[0])
    answers = list(GOLD.values())
    shuffled = dict(zip(GOLD, answers[1:] + answers[:1], strict=True))
    # Something that the model did say in training, so that accuracies differ.
    rows = [row for step in range(1, STEPS + 1) for row in files.read_lines(RunDirectory(trained[0]).rollouts(step))]
    said = {row["id"]: row["answer"] for row in rows if row["answer"]}
    for name, gold in {"shuffled": shuffled, "none": {}, "said": said}.items():
        file = write_lines(tmp_path / f"{name}.jsonl", [{"id": i, "answer": a} for i, a in gold.items()])
        run(place, tmp_path / name, *(("--gold", file) if gold else ()))
        found = final(tmp_path / name)
        assert [found[key] for key in weights] == [right[key] for key in weights]
    accuracy = [row["rollout/accuracy"] for row in final(tmp_path / "said")["metrics"]]
    assert accuracy != [row["rollout/accuracy"] for row in right["metrics"]], "the gold answers must have been read"


def test_the_gold_reward_does_reach_the_learner(place: Path, trained: tuple[Path, Result], tmp_path: Path) -> None:
    rows = [{"id": p.id, "answer": "3"} for p in PROBLEMS]
    run(place, tmp_path / "run", "--gold", write_lines(tmp_path / "g.jsonl", rows), "--reward", "gold")
    assert final(tmp_path / "run")["adapter"] != final(trained[0])["adapter"]


def test_a_large_training_set_is_warned_of_once(place: Path, tmp_path: Path) -> None:
    for count in (LARGE_SET, LARGE_SET + 1):
        problems = write_lines(tmp_path / "many.jsonl", [{"prompt": "Q"} for _ in range(count)])
        arguments = ("run", problems, "--config", place / "c.toml", "--steps", 1, "--set", "answers=false")
        said = ttrl(*arguments).stderr.count("arXiv 2603.08660")
        assert said == (count > LARGE_SET)


class Refusing(HfBackend):
    def rollouts(self, requests: Sequence[Request]) -> Iterator[tuple[int, Rollout]]:
        raise UsageError("not with me")


def test_a_run_that_cannot_find_its_sigma_leaves_nothing(place: Path, tmp_path: Path) -> None:
    more = ("--set", "population.options.sigma=auto", "--backend", "cli.test_run:Refusing")
    assert run(place, tmp_path / "run", *more, code=2).stderr.endswith("ttrl-pop: not with me\n")
    assert list(tmp_path.iterdir()) == []


# --- resume ---


@pytest.fixture
def copied(trained: tuple[Path, Result], tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained[0], tmp_path / "copy", symlinks=True))


def test_resuming_a_finished_run_prints_its_answers(trained: tuple[Path, Result], copied: Path) -> None:
    assert ttrl("run", "--resume", copied, "--quiet").stdout == trained[1].stdout
    assert final(copied) == final(trained[0])


def test_a_resumed_run_with_more_steps_equals_one_of_that_many(place: Path, copied: Path, tmp_path: Path) -> None:
    ttrl("run", "--resume", copied, "--steps", STEPS + 2, "--quiet")
    more = ("--gold", place / "gold.jsonl", "--set", "baseline=true", "--steps", STEPS + 2)
    run(place, tmp_path / "longer", *more)
    assert final(copied) == final(tmp_path / "longer")
    assert (copied / "config.toml").read_bytes() == (tmp_path / "longer" / "config.toml").read_bytes()


def resume_refused(run_directory: Path, *more: object) -> str:
    before = snapshot(run_directory)
    result = ttrl("run", *more, "--resume", run_directory, code=2)
    assert snapshot(run_directory) == before
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)
    return result.stderr


def test_a_resume_with_something_else_is_refused(place: Path, copied: Path, tmp_path: Path) -> None:
    other = write_lines(tmp_path / "other.jsonl", [{"id": p.id, "prompt": p.prompt + "?"} for p in PROBLEMS])
    another = save_tiny(tmp_path / "another", seed=1)
    assert "holds other problems than the run" in resume_refused(copied, other)
    assert "model was" in resume_refused(copied, "--model", another)
    assert "learn.lr was 0.01, cannot become 0.02" in resume_refused(copied, "--lr", 0.02)
    assert "population.options was" in resume_refused(copied, "--set", "population.options.sigma=0.1")
    assert "the run has done 3 steps; --steps cannot go back to 2" in resume_refused(copied, "--steps", 2)
    assert "leave --gold out" in resume_refused(copied, "--gold", place / "gold.jsonl")
    assert "leave --config out" in resume_refused(copied, "--config", place / "c.toml")


def test_the_collapse_guard_ends_a_run_with_exit_code_3_and_says_what_is_kept(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collapse, "RULES", (lambda first, now: "\x1b[31mall the same",))
    out = tmp_path / "run"
    arguments = ("run", place / "p.jsonl", "--config", place / "c.toml", "--out", out, "--steps", 7)
    told = ttrl(*arguments, "--stop-on-collapse", code=3)
    assert told.stdout == ""
    assert "warning: step 6 looks like a collapse: ␛[31mall the same" in told.stderr
    last = told.stderr.splitlines()[-1]
    assert last.startswith(r"ttrl-pop: step 6 looks like a collapse: \x1b[31mall the same; saved up to step 6 in")
    assert f"{out / 'best'} is where minds agreed most before" in last
    again = ttrl("run", "--resume", out, "--set", "guard.stop_on_collapse=false")
    assert len(rows_of(again.stdout)) == 6
    assert "alarm" in rows_of(RunDirectory(out).metrics.read_text())[6]


def test_problems_shows_what_a_run_knows_of_each(place: Path, trained: tuple[Path, Result]) -> None:
    out = trained[0]
    rows = rows_of(ttrl("problems", out).stdout)
    assert {row["id"] for row in rows} == set(GOLD)
    assert sum(row["visits"] for row in rows) == STEPS * 4
    for row in rows:
        assert row["gold"] == GOLD[row["id"]]
        assert row["correct"] == (row["label"] == row["gold"])
        assert 0 <= row["flip_rate"] <= 1
        assert row["weight"] == 1.0
    first = rows_of(ttrl("problems", RunDirectory(out).checkpoint(2)).stdout)
    assert sum(row["visits"] for row in first) == 2 * 4
    assert "neither a run directory" in ttrl("problems", place, code=2).stderr


def test_a_run_that_another_process_works_on_is_left_alone(copied: Path) -> None:
    prepared = opening.prepare_resume(copied, None, None, Given(overrides={"steps": STEPS + 1}))
    identity = RunDirectory(copied).identity
    identity.write_text(json.dumps({**json.loads(identity.read_text()), "model": "another"}))
    before = snapshot(copied)
    with RunDirectory(copied).lock():
        # Said before the model, which is another one, is looked at.
        assert "another process is working" in resume_refused(copied)
        # And to the one of two that comes second to the lock.
        with pytest.raises(UsageError, match="another process is working"):
            commands.run(prepared, quiet=True)
    assert snapshot(copied) == before


def test_a_resume_on_other_weights_or_changed_files_is_refused(place: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "tiny")
    out = tmp_path / "run"
    run(place, out, "--model", tmp_path / "tiny", "--quiet")
    save_tiny(tmp_path / "tiny", seed=1)
    assert "is not the one of the run" in resume_refused(out, "--steps", STEPS + 1)
    result = ttrl("eval", place / "p.jsonl", "--run", out, code=2)
    assert "is not the one of the run" in result.stderr
    problems = RunDirectory(out).problems
    problems.write_text(problems.read_text().replace("times", "plus"))
    assert "problems.jsonl in it has been changed" in resume_refused(out)
    RunDirectory(out).identity.write_text("{")
    assert "identity.json in it has been changed" in resume_refused(out)


# --- eval ---


def test_eval_measures_with_intervals(place: Path) -> None:
    (row,) = rows_of(ttrl("eval", place / "p.jsonl", "--config", place / "c.toml", "--quiet").stdout)
    assert (row["system"], row["population"], row["problems"], row["rollouts"]) == ("base", "norm-noise", 6, 3)
    low, high = row["intervals"]["agreement"]
    assert low <= row["agreement"] <= high
    assert row["maj@3"] is None
    assert not any("@" in key for key in row["intervals"])


def test_eval_with_gold_measures_accuracy(place: Path) -> None:
    gold = ("--gold", place / "gold.jsonl")
    (row,) = rows_of(ttrl("eval", place / "p.jsonl", "--config", place / "c.toml", "--quiet", *gold).stdout)
    figures = ["avg@3", "label_accuracy", "pass@1", "maj@1", "pass@2", "maj@2", "pass@3", "maj@3"]
    assert all(row["intervals"][key][0] <= row[key] <= row["intervals"][key][1] for key in figures)


def test_eval_of_a_run_measures_the_run(place: Path, trained: tuple[Path, Result]) -> None:
    out, _ = trained
    arguments = ("eval", place / "p.jsonl", "--quiet", "--gold", place / "gold.jsonl")
    newest = rows_of(ttrl(*arguments, "--run", out).stdout)
    assert newest == rows_of(ttrl(*arguments, "--run", out / "checkpoints" / "step_0003").stdout)
    # The run's own final answers came from the same policy, minds and random numbers.
    answers = rows_of(trained[1].stdout)
    assert newest[0]["agreement"] == pytest.approx(sum(row["agreement"] for row in answers) / len(answers))
    assert newest[0]["step"] == STEPS
    (best,) = rows_of(ttrl(*arguments, "--run", out / "best").stdout)
    assert f"step_{best['step']:04}" == (out / "best").resolve().name


def test_compare_puts_the_base_model_beside_the_run(place: Path, trained: tuple[Path, Result]) -> None:
    gold = ("--gold", place / "gold.jsonl")
    base, after, difference = rows_of(
        ttrl("eval", place / "p.jsonl", *gold, "--run", trained[0], "--compare", "--quiet").stdout
    )
    (alone,) = rows_of(ttrl("eval", place / "p.jsonl", *gold, "--config", place / "c.toml", "--quiet").stdout)
    assert base == alone, "the untrained population with the run's sigma is the base"
    assert base["intervals"] != after["intervals"]
    for key in ("agreement", "mean_length", "maj@3"):
        assert difference[key] == pytest.approx(after[key] - base[key])
        assert difference["intervals"][key][0] <= difference[key] <= difference["intervals"][key][1]
    assert sum(difference["labels"].values()) == len(PROBLEMS)


def test_compare_of_an_untrained_run_is_exactly_zero(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "run", "--lr", 0, "--quiet")
    base, after, difference = rows_of(
        ttrl("eval", place / "p.jsonl", "--run", tmp_path / "run", "--compare", "--quiet").stdout
    )
    assert {**after, "system": "base", "step": 0} == base
    assert all(value == 0 for value in difference.values() if isinstance(value, float))
    assert all(pair == [0, 0] for pair in difference["intervals"].values())


def test_population_none_is_the_mean_mind_of_a_run_and_the_bare_base_model(
    place: Path, trained: tuple[Path, Result]
) -> None:
    arguments = ("sample", place / "p.jsonl", "--quiet", "--population", "none", "--set", "sampling.temperature=0")
    base = rows_of(ttrl(*arguments, "--config", place / "c.toml").stdout)
    mean = rows_of(ttrl(*arguments, "--run", trained[0]).stdout)
    assert {row["mind"] for row in mean} == {0}
    assert len({row["mind"] for row in base}) == 3
    for rows in (base, mean):
        # Greedy and without noise: all rollouts of a problem are the same.
        assert len({(row["id"], row["text"]) for row in rows}) == len(PROBLEMS)
    (row,) = rows_of(ttrl("eval", place / "p.jsonl", "--quiet", "--population", "none", "--run", trained[0]).stdout)
    assert row["population"] == "none"


def test_a_run_is_measured_only_as_what_it_is(place: Path, trained: tuple[Path, Result], tmp_path: Path) -> None:
    arguments = ("eval", place / "p.jsonl", "--run", trained[0])
    for more, message in (
        (("--model", save_tiny(tmp_path / "another", seed=1)), "is not the one of the run"),
        (("--population", "fakes:Other"), "population.name was 'norm-noise' in training"),
        (("--set", "population.options.sigma=1"), "population.options was {'sigma': 0.3} in training"),
        (("--set", "learn.lora.rank=4"), "learn.lora.rank was 2 in training, cannot become 4"),
        (("--config", place / "c.toml"), "--run takes its configuration from the run directory"),
    ):
        assert message in ttrl(*arguments, *more, code=2).stderr


def test_a_run_that_learned_from_gold_is_measured_without_it(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "run", "--gold", place / "gold.jsonl", "--reward", "gold", "--quiet")
    assert rows_of(ttrl("eval", place / "p.jsonl", "--run", tmp_path / "run", "--quiet").stdout)
    assert rows_of(ttrl("sample", place / "p.jsonl", "--run", tmp_path / "run", "--quiet").stdout)


# --- sample ---


def test_sample_prints_every_rollout(place: Path) -> None:
    rows = rows_of(
        ttrl("sample", place / "p.jsonl", "--config", place / "c.toml", "--samples-per-mind", 2, "--quiet").stdout
    )
    assert [(row["id"], row["rollout"]) for row in rows] == [(p.id, i) for p in PROBLEMS for i in range(6)]
    assert all(len(row["completion_ids"]) == len(row["logprobs"]) for row in rows)
    assert "reward" not in rows[0]


def test_sample_of_a_run_writes_what_the_run_answered(place: Path, trained: tuple[Path, Result]) -> None:
    rows = rows_of(ttrl("sample", place / "p.jsonl", "--run", trained[0], "--quiet").stdout)
    for answer in rows_of(trained[1].stdout):
        given = [row["answer"] for row in rows if row["id"] == answer["id"] and row["answer"] is not None]
        assert sum(answer["votes"].values()) == len(given)


class Watched(HfBackend):
    """Two problems of three minds at a time; notes when each rollout is done."""

    events: ClassVar[list[str]] = []

    def rollouts(self, requests: Sequence[Request]) -> Iterator[tuple[int, Rollout]]:
        for start in range(0, len(requests), 6):
            for index, rollout in super().rollouts(requests[start : start + 6]):
                self.events.append("rollout")
                yield start + index, rollout


class Reader(io.StringIO):
    """Standard output, whose reader notes when something came."""

    def flush(self) -> None:
        Watched.events.append(f"{len(self.getvalue().splitlines())} lines")


def test_sample_prints_a_problem_before_the_last_is_sampled(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Watched.events.clear()
    monkeypatch.setattr(sys, "stdout", Reader())
    arguments = ["sample", place / "p.jsonl", "--config", place / "c.toml", "--quiet"]
    with pytest.raises(SystemExit):
        app([*map(str, arguments), "--backend", "cli.test_run:Watched"])
    assert Watched.events.count("rollout") == 18
    assert Watched.events.index("3 lines") < 12, "three rollouts of the first problem, before the last is sampled"


# --- processes: pipes, signals, terminals ---


def child(arguments: list[str], stdout: str, stderr: str, stdin: str, largest: int | None) -> None:
    """`ttrl-pop` in a process of its own, on files, pipes or a terminal; no file gets longer than `largest` bytes."""
    import torch

    from ttrl_pop.cli.app import main

    torch.set_num_threads(1)
    for number, path, flags in ((0, stdin, os.O_RDONLY), (2, stderr, os.O_WRONLY), (1, stdout, os.O_WRONLY)):
        os.dup2(os.open(path, flags | os.O_CREAT), number)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    sys.argv = ["ttrl-pop", *arguments]
    main()


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Any]]:
    # Children are forked from a server that has done the imports.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ttrl_pop.cli.run"])
    started = []

    def begin(
        *arguments: object,
        stdout: object,
        stderr: object = os.devnull,
        stdin: object = os.devnull,
        largest: int | None = None,
    ) -> Any:
        streams = (str(stream) for stream in (stdout, stderr, stdin))
        process = context.Process(target=child, args=([str(a) for a in arguments], *streams, largest))
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.join()


def ended(process: Any) -> int | None:
    process.join(120)
    return process.exitcode


@pytest.mark.parametrize("command", ["run", "sample", "eval"])
@pytest.mark.parametrize("lines", [0, 1])
def test_a_reader_that_leaves_ends_it_quietly(
    place: Path, tmp_path: Path, start: Callable[..., Any], command: str, lines: int
) -> None:
    pipe, errors = tmp_path / "pipe", tmp_path / "errors"
    os.mkfifo(pipe)
    process = start(command, place / "p.jsonl", "--config", place / "c.toml", stdout=pipe, stderr=errors)
    with pipe.open() as reader:
        for _ in range(lines):
            json.loads(reader.readline())
    assert ended(process) == 0
    assert "Traceback" not in errors.read_text()
    assert "Broken" not in errors.read_text()


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"]], ids=" ".join)
def test_a_reader_of_the_help_may_leave(tmp_path: Path, start: Callable[..., Any], words: list[str]) -> None:
    pipe, errors = tmp_path / "pipe", tmp_path / "errors"
    os.mkfifo(pipe)
    process = start(*words, stdout=pipe, stderr=errors)
    pipe.open().close()
    assert (ended(process), errors.read_text()) == (0, "")


class Broken(HfBackend):
    """An engine whose process is gone."""

    def rollouts(self, requests: Sequence[Request]) -> Iterator[tuple[int, Rollout]]:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def test_a_broken_pipe_of_an_engine_is_an_error(place: Path, tmp_path: Path, start: Callable[..., Any]) -> None:
    arguments = ("sample", place / "p.jsonl", "--config", place / "c.toml", "--backend", "cli.test_run:Broken")
    process = start(*arguments, stdout=tmp_path / "out", stderr=tmp_path / "errors")
    assert ended(process) == 1
    assert "in rollouts\n" in (tmp_path / "errors").read_text(), "the place where it broke"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_rows_that_find_no_room_are_one_line(place: Path, tmp_path: Path, start: Callable[..., Any]) -> None:
    arguments = ("sample", place / "p.jsonl", "--config", place / "c.toml", "--quiet")
    process = start(*arguments, stdout="/dev/full", stderr=tmp_path / "errors")
    assert ended(process) == 1
    message = "ttrl-pop: standard output cannot be written to (No space left on device); send it elsewhere\n"
    assert (tmp_path / "errors").read_text() == message


def test_a_reader_of_stderr_that_leaves_changes_nothing(
    place: Path, trained: tuple[Path, Result], tmp_path: Path, start: Callable[..., Any]
) -> None:
    pipe, out = tmp_path / "pipe", tmp_path / "run"
    os.mkfifo(pipe)
    arguments = ("--config", place / "c.toml", "--out", out, "--gold", place / "gold.jsonl", "--set", "baseline=true")
    process = start("run", place / "p.jsonl", *arguments, stdout=tmp_path / "answers", stderr=pipe)
    pipe.open().close()
    assert ended(process) == 0
    assert (tmp_path / "answers").read_text() == trained[1].stdout


@pytest.fixture(scope="module")
def long_run(place: Path, start: Callable[..., Any]) -> Path:
    """An undisturbed run of 40 steps."""
    out = place / "long"
    arguments = ("--config", place / "c.toml", "--steps", 40, "--out", out)
    assert ended(start("run", place / "p.jsonl", *arguments, stdout=os.devnull)) == 0
    return out


@pytest.mark.parametrize(("number", "quiet"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_an_interrupted_run_saves_says_how_to_go_on_and_ends_the_same(
    place: Path, long_run: Path, tmp_path: Path, start: Callable[..., Any], number: signal.Signals, quiet: bool
) -> None:
    out, errors = tmp_path / "a run", tmp_path / "errors"
    arguments = ("--config", place / "c.toml", "--steps", 40, "--out", out, *(["--quiet"] if quiet else []))
    # Saving at the end of every step must not be what keeps the work.
    arguments += ("--set", "checkpoint.every=1000")
    process = start("run", place / "p.jsonl", *arguments, stdout=tmp_path / "answers", stderr=errors)
    metrics = RunDirectory(out).metrics
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 2):
        time.sleep(0.01)
    os.kill(process.pid, number)
    assert ended(process) == 130, errors.read_text()
    saved = checkpoint.latest(RunDirectory(out))
    assert saved is not None
    assert 2 <= saved < 40
    assert (tmp_path / "answers").read_text() == ""
    said = errors.read_text().splitlines()
    if quiet:
        assert said == []
    else:
        assert (
            said[-1] == f"stopped; saved up to step {saved}; go on with: ttrl-pop run --resume {shlex.quote(str(out))}"
        )
    assert ended(start("run", "--resume", out, stdout=tmp_path / "resumed")) == 0
    assert final(out) == final(long_run)
    assert (tmp_path / "resumed").read_bytes() == (long_run / "answers.jsonl").read_bytes()


@pytest.mark.parametrize("full", ["in a checkpoint", "in the metrics"])
def test_a_full_disk_says_what_is_saved_and_how_to_go_on(
    place: Path, long_run: Path, tmp_path: Path, start: Callable[..., Any], full: str
) -> None:
    run_dir, errors = RunDirectory(tmp_path / "a run"), tmp_path / "errors"
    checkpointed = max(file.stat().st_size for file in RunDirectory(long_run).checkpoint(40).rglob("*"))
    recorded = RunDirectory(long_run).metrics.stat().st_size
    assert checkpointed < 0.9 * recorded
    largest = checkpointed // 2 if full == "in a checkpoint" else int(0.9 * recorded)
    arguments = ("--config", place / "c.toml", "--steps", 40, "--out", run_dir.path, "--quiet")
    process = start("run", place / "p.jsonl", *arguments, stdout=tmp_path / "answers", stderr=errors, largest=largest)
    assert ended(process) == 1
    saved = checkpoint.latest(run_dir) or 0
    assert saved == 0 if full == "in a checkpoint" else 20 < saved < 40
    hint = f"ttrl-pop run --resume {shlex.quote(str(run_dir.path))}"
    told = (
        f"ttrl-pop: {run_dir.path}: cannot be written to (File too large); saved up to step {saved}; go on with: {hint}"
    )
    assert errors.read_text() == f"{told}\n"
    assert (tmp_path / "answers").read_text() == ""
    assert ended(start("run", "--resume", run_dir.path, stdout=os.devnull)) == 0
    assert final(run_dir.path) == final(long_run)


def on_terminal(start: Callable[..., Any], *arguments: object) -> tuple[int | None, str]:
    """Exit code and screen of a command whose streams are all one terminal of 100 columns."""
    master, slave = pty.openpty()
    name = os.ttyname(slave)
    process = start(*arguments, stdout=name, stderr=name, stdin=name)
    shown = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ready, _, _ = select.select([master], [], [], 0.2)
        if ready:
            shown += os.read(master, 65536)
        elif not process.is_alive():
            break
    os.close(slave)
    os.close(master)
    return ended(process), shown.decode()


def test_a_terminal_gets_a_table_and_hostile_text_cannot_act(
    place: Path, tmp_path: Path, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": "\x1b[31m[red]id", "prompt": "Q"}))
    (tmp_path / "extractor.py").write_text(
        "def hostile(text, finish_reason):\n    return '\\x1b[2J\\x1b]0;owned\\x07[bold]seven[/bold]'\n"
    )
    more = ("--steps", 1, "--out", tmp_path / "run", "--set", "vote.extract=extractor:hostile")
    monkeypatch.syspath_prepend(tmp_path)
    code, shown = on_terminal(start, "run", tmp_path / "p.jsonl", "--config", place / "c.toml", *more)
    assert code == 0
    assert "agreement" in shown
    assert "␛[31m[red]id" in shown
    assert "␛[2J␛]0;owned␇[bold]seven" in shown
    assert "\x1b[2J" not in shown
    assert "\x1b]0;" not in shown
    assert "\x07" not in shown
    assert not any(line.startswith("{") for line in shown.splitlines())


def test_eval_shows_a_table_and_sample_its_rows_on_a_terminal(
    place: Path, trained: tuple[Path, Result], start: Callable[..., Any]
) -> None:
    arguments = ("--gold", place / "gold.jsonl", "--run", trained[0], "--compare")
    code, shown = on_terminal(start, "eval", place / "p.jsonl", *arguments)
    plain = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", shown)
    assert code == 0
    assert re.search(r"base +run +run - base", plain)
    assert re.search(r"maj@3 +\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]", plain)
    assert re.search(r"labels: learned \d, kept \d, lost \d, never \d", plain)
    code, shown = on_terminal(start, "sample", place / "p.jsonl", "--config", place / "c.toml")
    assert code == 0
    assert len(rows_of(shown)) == 18, "no live view among the rows"


class Counted(ScriptedBackend):
    """Says, after every update, how many rollouts are alive, and how many objects of any kind."""

    def refresh(self) -> None:
        gc.collect()
        things = gc.get_objects()
        # Not isinstance, which wakes lazy modules.
        print(f"alive {sum(type(thing) is Rollout for thing in things)} {len(things)}", file=sys.stderr)


def test_memory_does_not_grow_with_steps(place: Path, tmp_path: Path, start: Callable[..., Any]) -> None:
    process = start(
        *("run", place / "p.jsonl", "--config", place / "c.toml", "--out", tmp_path / "run", "--steps", 12),
        *("--backend", "cli.test_run:Counted", "--set", "answers=false"),
        stdout=tmp_path / "out",
        stderr=tmp_path / "errors",
    )
    assert ended(process) == 0
    found = re.findall(r"^alive (\d+) (\d+)$", (tmp_path / "errors").read_text(), re.MULTILINE)
    rollouts, things = ([int(count) for count in column] for column in zip(*found, strict=True))
    assert len(found) == 12
    assert set(rollouts) == {12}, "the rollouts of one step"
    # The noise of three minds a step is kept, up to a limit.
    assert things[-1] - things[3] <= 8 * 3


class Timed(ScriptedBackend):
    """Says how much of the processor's time went by before it was asked for anything."""

    def rollouts(self, requests: Sequence[Request]) -> Iterator[tuple[int, Rollout]]:
        print(f"cpu {time.process_time()}", file=sys.stderr)
        return super().rollouts(requests)


def test_a_hundred_thousand_problems_start_at_once(place: Path, tmp_path: Path, start: Callable[..., Any]) -> None:
    model = save_tiny(tmp_path / "roomy")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    rows = [
        {"id": f"n{i}", "problem": f"What is {i} times {i + 1}?", "answer": str(i * (i + 1))} for i in range(100_000)
    ]
    process = start(
        *("run", write_lines(tmp_path / "many.jsonl", rows), "--config", place / "c.toml", "--model", model),
        *("--backend", "cli.test_run:Timed", "--steps", 1, "--set", "answers=false", "--out", tmp_path / "run"),
        stdout=tmp_path / "out",
        stderr=tmp_path / "errors",
    )
    assert ended(process) == 0
    (seconds,) = re.findall(r"^cpu (.*)$", (tmp_path / "errors").read_text(), re.MULTILINE)
    # Generous: other things run beside the tests.
    assert float(seconds) < 10


@pytest.mark.slow
def test_the_pipe_of_the_readme(place: Path, tmp_path: Path) -> None:
    """A real shell, a real process: nothing but JSON on stdout, nothing on stderr."""
    problems = ROOT / "examples" / "times-table.jsonl"
    reader = (
        "jq -r .id"
        if shutil.which("jq")
        else f"{sys.executable} -c 'import sys, json; [print(json.loads(x)[\"id\"]) for x in sys.stdin]'"
    )
    command = f"{sys.executable} -m ttrl_pop run - --config {place}/c.toml --steps 1 --quiet | {reader}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"head -4 {problems} | {command}"], capture_output=True, text=True
    )
    expected = [json.loads(line)["id"] for line in problems.read_text().splitlines()[:4]]
    assert (done.returncode, done.stderr, done.stdout.split()) == (0, "", expected)


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["head -1", "true"])
def test_a_shell_sees_no_trace_of_a_closed_pipe(place: Path, reader: str) -> None:
    command = f"{sys.executable} -m ttrl_pop sample {place}/p.jsonl --config {place}/c.toml --quiet | {reader}"
    done = subprocess.run(
        ["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0"
