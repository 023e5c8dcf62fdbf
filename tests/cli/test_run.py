"""`ttrl-pop run`: what it prints, what it keeps, what it refuses, and how a run goes on."""

import errno
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cli.commands import GOLD, STEPS, Counting, final, rows_of, run, snapshot, ttrl, write_lines
from fakes import PROBLEMS, save_tiny
from safetensors import SafetensorError
from typer.testing import Result

from ttrl_pop.cli import opening
from ttrl_pop.cli import run as run_command
from ttrl_pop.cli.given import Given
from ttrl_pop.cli.run import LARGE_SET
from ttrl_pop.errors import TtrlPopError, UsageError
from ttrl_pop.learn.learner import Learner
from ttrl_pop.run import collapse
from ttrl_pop.store import checkpoint, files, identity
from ttrl_pop.store.directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("elsewhere")]


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
        identity.record(run_dir, path.name, files.encode_lines(path, rows))
    said = ttrl("run", "--resume", copied).stderr.splitlines()
    assert said.count("labels: learned 2, kept 2, lost 0, never 2") == 1
    assert sum(line.startswith("labels: ") for line in trained[1].stderr.splitlines()) == 1
    for path in (run_dir.baseline, run_dir.answers):
        without = [{k: v for k, v in row.items() if k not in ("gold", "correct")} for row in files.read_lines(path)]
        identity.record(run_dir, path.name, files.encode_lines(path, without))
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


def test_a_doubtful_rule_that_decides_votes_is_told_of_once(place: Path, tmp_path: Path) -> None:
    result = run(place, tmp_path / "run", "--set", "vote.grader='cli.commands:Doubting'", "--steps", 2)
    assert len(re.findall(r"problem p\d: it may be another", result.stderr)) == 1


def test_a_run_that_cannot_find_its_sigma_leaves_nothing(place: Path, tmp_path: Path) -> None:
    more = ("--set", "population.options.sigma=auto", "--backend", "cli.commands:Refusing")
    assert run(place, tmp_path / "run", *more, code=2).stderr.endswith("ttrl-pop: not with me\n")
    assert list(tmp_path.iterdir()) == []


def test_resuming_a_finished_run_prints_its_answers(trained: tuple[Path, Result], copied: Path) -> None:
    assert ttrl("run", "--resume", copied, "--quiet").stdout == trained[1].stdout
    assert final(copied) == final(trained[0])


def test_a_resumed_run_with_more_steps_equals_one_of_that_many(place: Path, copied: Path, tmp_path: Path) -> None:
    ttrl("run", "--resume", copied, "--steps", STEPS + 2, "--quiet")
    more = ("--gold", place / "gold.jsonl", "--set", "baseline=true", "--steps", STEPS + 2)
    run(place, tmp_path / "longer", *more)
    assert final(copied) == final(tmp_path / "longer")
    assert (copied / "config.toml").read_bytes() == (tmp_path / "longer" / "config.toml").read_bytes()


def test_what_fewer_steps_came_to_does_not_outlive_an_interruption(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Iterator[object]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("ttrl_pop.cli.run._train", interrupted)
    assert (copied / "verdict.json").exists()
    ttrl("run", "--resume", copied, "--steps", STEPS + 2, "--quiet", code=130)
    assert not {"verdict.json", "answers.jsonl"} & {path.name for path in copied.iterdir()}


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
    assert "is not the one of the run" in resume_refused(copied, "--model", another)
    assert "learn.lr was 0.01, cannot become 0.02" in resume_refused(copied, "--lr", 0.02)
    for setting, message in (
        ("population.options.sigma=0.1", "population.options.sigma was 0.3, cannot become 0.1"),
        ("population.options.spread=dim", "population.options.spread was 'site', cannot become 'dim'"),
        ("backend_options.graphs=true", "backend_options.graphs was None, cannot become True"),
        ("backend_options.slots=2", "backend_options.slots was None, cannot become 2"),
    ):
        assert message in resume_refused(copied, "--set", setting)
    assert "the run has done 3 steps; --steps cannot go back to 2" in resume_refused(copied, "--steps", 2)
    assert "leave --gold out" in resume_refused(copied, "--gold", place / "gold.jsonl")
    assert "leave --config out" in resume_refused(copied, "--config", place / "c.toml")


def test_the_collapse_guard_ends_a_run_with_exit_code_3_and_says_what_is_kept(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collapse, "SIGNS", (lambda first, now: "\x1b[31mall the same",))
    out = tmp_path / "run"
    arguments = ("run", place / "p.jsonl", "--config", place / "c.toml", "--out", out, "--steps", 7)
    told = ttrl(*arguments, "--stop-on-collapse", code=3)
    assert told.stdout == ""
    assert "warning: step 6 looks like a collapse: ␛[31mall the same" in told.stderr
    last = told.stderr.splitlines()[-1]
    assert last.startswith(r"ttrl-pop: step 6 looks like a collapse: \x1b[31mall the same; saved up to step 6 in")
    assert f"{out / 'best'} is the last sound checkpoint" in last
    again = ttrl("run", "--resume", out, "--set", "guard.stop_on_collapse=false")
    assert len(rows_of(again.stdout)) == 6
    assert "alarm" in rows_of(RunDirectory(out).metrics.read_text())[6]


def test_a_run_that_another_process_works_on_is_left_alone(copied: Path) -> None:
    prepared = opening.prepare_resume(copied, None, None, Given(overrides={"steps": STEPS + 1}))
    other = replace(identity.load(RunDirectory(copied)), model="another")
    RunDirectory(copied).identity.write_text(other.dumps())
    before = snapshot(copied)
    with RunDirectory(copied).lock():
        # Said before the model, which is another one, is looked at.
        assert "another process is working" in resume_refused(copied)
        # And to the one of two that comes second to the lock.
        with pytest.raises(UsageError, match="another process is working"):
            run_command.run(lambda stage: prepared, quiet=True)
    assert snapshot(copied) == before


def test_a_resume_with_another_template_or_end_of_sequence_is_refused(place: Path, tmp_path: Path) -> None:
    """Nobody would see it: the weights are the same, and prompts or ends of completions others."""
    out, model = tmp_path / "run", save_tiny(tmp_path / "tiny")
    run(place, out, "--model", model, "--quiet")
    for name, change in (
        ("chat_template.jinja", lambda text: text.replace("assistant:", "you:")),
        ("generation_config.json", lambda text: json.dumps({**json.loads(text), "eos_token_id": [1, 5]})),
    ):
        before = (model / name).read_text()
        (model / name).write_text(change(before))
        assert (model / name).read_text() != before
        for said in (
            resume_refused(out, "--steps", STEPS + 1),
            ttrl("eval", place / "p.jsonl", "--run", out, code=2).stderr,
            ttrl("export", out, "-o", tmp_path / "exported", code=2).stderr,
        ):
            assert "has the weights of the run, but another tokenizer, chat template or end of sequence" in said
        (model / name).write_text(before)
    ttrl("run", "--resume", out, "--steps", STEPS + 1)


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
    assert "problems.jsonl: has 311 bytes where 317 were written; put it back from a copy" in resume_refused(out)
    RunDirectory(out).identity.write_text("{")
    assert "identity.json: is not the JSON that was written" in resume_refused(out)


def test_a_bare_prompt_of_a_chat_model_is_a_turn_in_all_that_is_made_of_it(place: Path, tmp_path: Path) -> None:
    """In the run, in what it keeps, when it goes on, and when it is measured: read again, nothing changes."""
    out, auto = tmp_path / "run", ("--set", "problems.form=auto")
    first = run(place, out, *auto, "--steps", 1)
    told = [line for line in first.stderr.splitlines() if "made chat turns" in line]
    assert len(told) == 1
    assert told[0].startswith(f"{len(PROBLEMS)} text prompts made chat turns")
    run_dir = RunDirectory(out)
    kept = rows_of(run_dir.problems.read_text())
    assert [row["messages"][0]["content"].partition("\n\nPlease")[0] for row in kept] == [p.prompt for p in PROBLEMS]
    before = run_dir.problems.read_bytes(), identity.load(run_dir).problems
    resumed = ttrl("run", place / "p.jsonl", "--resume", out, "--steps", 2)
    assert "made chat turns" not in resumed.stderr
    assert (run_dir.problems.read_bytes(), identity.load(run_dir).problems) == before
    other = write_lines(tmp_path / "other.jsonl", [{"id": p.id, "prompt": p.prompt + "?"} for p in PROBLEMS])
    assert "holds other problems" in ttrl("run", other, "--resume", out, "--steps", 3, code=2).stderr
    for problems in (place / "p.jsonl", run_dir.problems):
        sampled = ttrl("sample", problems, "--run", out, "--quiet")
        assert {row["form"] for row in rows_of(sampled.stdout)} == {"chat"}
    assert {row["form"] for row in rows_of(ttrl("sample", place / "p.jsonl", "--run", out, "--raw").stdout)} == {"raw"}


def test_a_run_goes_on_from_any_folder_and_with_its_model_in_another_place(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(place / "tiny", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    run(place, tmp_path / "run", "--model", "mine", "--steps", 1)
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    ttrl("run", "--resume", "../run", "--steps", 2)
    ttrl("sample", place / "p.jsonl", "--run", "../run", "--quiet")
    (tmp_path / "mine").rename(tmp_path / "moved")
    refused = ttrl("run", "--resume", "../run", "--steps", 3, code=2)
    assert f"model '{tmp_path / 'mine'}' is neither" in refused.stderr
    ttrl("run", "--resume", "../run", "--steps", 3, "--model", "../moved")
    ttrl("run", "--resume", "../run", "--steps", 4)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (("--set", "learn.mask_truncated=true"), "every completion cut off by the token limit"),
        (("--extract", "regex:NEVERTHERE"), "no completion with an answer"),
        (("--extract", "cli.commands:constant"), "all agree"),
    ],
)
def test_a_run_that_learns_nothing_says_so(place: Path, tmp_path: Path, settings: tuple[str, ...], why: str) -> None:
    said = [line for line in run(place, tmp_path / "run", *settings).stderr.splitlines() if line.startswith("warning")]
    assert [line.split(":")[1].strip() for line in said] == [
        "step 1",
        "step 2",
        "step 3",
        "nothing was learned in any step",
    ]
    assert all(why in line for line in said)
    for row in rows_of(RunDirectory(tmp_path / "run").metrics.read_text()):
        skipped = [value for key, value in row.items() if key.startswith("learn/skipped_")]
        assert sorted(skipped) == [0, 0, 0, 0, row["learn/groups_used"] + row["learn/groups_skipped"]]
    quiet = run(place, tmp_path / "quiet", *settings, "--quiet")
    assert quiet.stderr == ""


def test_with_a_kl_groups_that_agree_are_learned_from(place: Path, tmp_path: Path) -> None:
    settings = ("--extract", "cli.commands:constant", "--set", "learn.kl=0.1")
    assert "nothing was learned" not in run(place, tmp_path / "run", *settings).stderr
    for row in rows_of(RunDirectory(tmp_path / "run").metrics.read_text()):
        assert (row["learn/groups_skipped"], sum(v for k, v in row.items() if k.startswith("learn/skipped_"))) == (0, 0)
        assert row["learn/grad_norm"] >= 0


def test_a_limit_that_cuts_most_off_is_said_once_by_sample_and_eval_too(place: Path) -> None:
    for command in ("sample", "eval"):
        said = ttrl(command, place / "p.jsonl", "--config", place / "c.toml", "--extract", "regex:NEVERTHERE").stderr
        assert len(re.findall("completions were cut off at 4 tokens and have no answer; raise", said)) == 1


def test_answers_that_find_no_room_are_kept_and_named(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise TtrlPopError("standard output cannot be written to")

    monkeypatch.setattr("ttrl_pop.cli.run.print_rows", full)
    refused = run(place, tmp_path / "run", "--quiet", code=1)
    assert f"; the answers are in {tmp_path / 'run' / 'answers.jsonl'}\n" in refused.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "cannot be written to (No space left on device)"),
        (PermissionError(errno.EACCES, "Permission denied", "a/file"), "a/file: Permission denied"),
        (OSError(errno.EMFILE, "Too many open files", "a/file"), "a/file: Too many open files"),
        (SafetensorError("Error while serializing: I/O error: File too large (os error 27)"), "(File too large)"),
    ],
)
def test_what_the_system_refuses_in_a_run_is_a_line_that_says_how_to_go_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def failing(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("ttrl_pop.run.progress.checkpoint.save", failing)
    refused = run(place, tmp_path / "run", "--quiet", code=1)
    assert refused.stderr.count("\n") == 1
    assert line in refused.stderr
    assert refused.stderr.endswith(f"saved up to step 0; go on with: ttrl-pop run --resume {tmp_path / 'run'}\n")


def test_a_run_of_the_first_problems_knows_where_they_are_from_and_goes_on_with_the_same_file(
    place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    answers = rows_of(run(place, out, "--limit", 2, "--steps", 1, "--gold", place / "gold.jsonl").stdout)
    assert [row["id"] for row in answers] == ["p0", "p1"]
    assert identity.load(RunDirectory(out)).source == str(place / "p.jsonl")
    resumed = ttrl("run", place / "p.jsonl", "--resume", out, "--steps", 2)
    assert [row["id"] for row in rows_of(resumed.stdout)] == ["p0", "p1"]
    for limit, count in (([], 6), (["--limit", 3], 3)):
        assert rows_of(ttrl("eval", place / "p.jsonl", "--run", out, *limit).stdout)[0]["problems"] == count


def test_a_policy_that_no_update_has_changed_is_not_asked_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Everybody answers the same: there is nothing to learn.
    equal = ("--set", "vote.extract=cli.commands:constant", "--set", "baseline=true", "--steps", 2)
    monkeypatch.setattr(Learner, "learn", learned := Counting(Learner.learn))
    surveyed = Counting(run_command.survey)
    monkeypatch.setattr(run_command, "survey", surveyed)
    said = run(place, tmp_path / "run", *equal)
    made = RunDirectory(tmp_path / "run")
    assert (surveyed.calls, learned.calls) == (1, 2)
    assert "no update has changed the policy" in said.stderr
    reused = made.answers.read_bytes()
    assert reused == made.baseline.read_bytes()
    spent, before = (json.loads(made.spent(path).read_text()) for path in (made.answers, made.baseline))
    assert spent == before
    assert spent["rollouts"] == 18
    made.answers.unlink()
    files.remove(made.baseline)
    ttrl("run", "--resume", made.path)
    assert surveyed.calls == 2
    assert made.answers.read_bytes() == reused, "asked again, it says the same"


def test_the_last_lines_name_the_weights_that_answered(copied: Path) -> None:
    made = RunDirectory(copied)
    assert checkpoint.answering_step(made, STEPS) == STEPS
    row = {"verdict": "collapsing", "why": "", "steps": STEPS, "answers_of_step": 1}
    identity.record(made, made.verdict.name, json.dumps(row).encode())
    assert checkpoint.answering_step(made, STEPS) == 1


def test_a_policy_that_has_learned_is_asked_again(trained: tuple[Path, Result]) -> None:
    made = RunDirectory(trained[0])
    assert made.baseline.read_bytes() != made.answers.read_bytes()


def test_answers_stay_where_a_run_that_is_done_goes_on_with_another_setting(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_command, "survey", surveyed := Counting(run_command.survey))
    before = RunDirectory(copied).answers.read_bytes()
    ttrl("run", "--resume", copied, "--stop-on-collapse")
    assert RunDirectory(copied).answers.read_bytes() == before
    assert surveyed.calls == 0
    ttrl("run", "--resume", copied, "--steps", STEPS + 1)
    assert surveyed.calls == 1


def test_without_a_step_the_untrained_population_answers(place: Path, tmp_path: Path) -> None:
    trained = run(place, tmp_path / "trained", "--set", "baseline=true")
    untrained = run(place, tmp_path / "untrained", "--steps", 0)
    # There is nothing to judge.
    assert "verdict" not in untrained.stderr
    assert not RunDirectory(tmp_path / "untrained").verdict.exists()
    assert trained.exit_code == untrained.exit_code == 0
    assert (tmp_path / "untrained/answers.jsonl").read_bytes() == (tmp_path / "trained/baseline.jsonl").read_bytes()
    assert checkpoint.latest(RunDirectory(tmp_path / "untrained")) is None


def test_a_run_with_nothing_to_do_is_refused(place: Path, tmp_path: Path) -> None:
    result = run(place, tmp_path / "run", "--steps", 0, "--set", "answers=false", code=2)
    assert "leaves nothing to do" in result.stderr


def test_what_answers_took_is_kept(place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "run", "--set", "baseline=true")
    spent = {name: json.loads((tmp_path / f"run/{name}.spent.json").read_text()) for name in ("baseline", "answers")}
    assert [row["rollouts"] for row in spent.values()] == [18, 18]
    # Before training the same is written as by `sample`.
    written = rows_of(ttrl("sample", place / "p.jsonl", "--config", place / "c.toml").stdout)
    assert spent["baseline"]["tokens"] == sum(len(row["completion_ids"]) for row in written)
