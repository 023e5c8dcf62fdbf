"""Problems held out move nothing but their own figures; a run that is settled ends; one that collapses falls back."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import PROBLEMS, ScriptedBackend, save_tiny, tiny_session

from ttrl_pop.api.training import train as train_run
from ttrl_pop.config_file import load_config
from ttrl_pop.learn.learner import Learner
from ttrl_pop.read.problems import fingerprint
from ttrl_pop.run.progress import Progress, fall_back, load_history, resume
from ttrl_pop.run.session import Session, open_session
from ttrl_pop.run.survey import survey
from ttrl_pop.run.verdict import judge
from ttrl_pop.sample.backend import Request, Weights
from ttrl_pop.store import checkpoint, files
from ttrl_pop.store.directory import MANIFEST, RunDirectory
from ttrl_pop.train import train
from ttrl_pop.types import AnswerKey, ProblemSet, Rollout, StepReport, Tally

SETTINGS: dict[str, Any] = {
    "steps": 4,
    "problems_per_step": 3,
    "quiet": True,
    "raw": True,
    "minds": 3,
    "seed": 5,
    "vote": {"grader": "exact"},
    "sampling": {"max_new_tokens": 3, "temperature": 2.0},
    "learn": {"lr": 1e-2, "mask_truncated": False, "lora": {"rank": 2}},
    "population": {"options": {"sigma": "auto", "target_kl": 0.2, "target_flips": 0.3}},
}
TRAINED, HELD = PROBLEMS[:4], PROBLEMS[4:]


def rows(problems: Sequence[Any], gold: str = "56") -> list[dict[str, str]]:
    return [{"id": p.id, "prompt": p.prompt, "answer": gold} for p in problems]


def beside_the_measured(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Figures of steps but for times and those of problems held out."""
    return [{key: row[key] for key in row if not key.startswith(("time/", "holdout/"))} for row in rows]


def left_by(out: Path) -> dict[str, Any]:
    """All that a run leaves behind, of its last checkpoint, but for times, what was told and problems held out."""
    run = RunDirectory(out)
    last = run.checkpoint(checkpoint.latest(run) or 0)
    files_of_run = [path for path in out.iterdir() if path.is_file() and not path.name.startswith("holdout.")]
    kept = [*files_of_run, *(out / "rollouts").iterdir(), *(path for path in last.rglob("*") if path.is_file())]
    # The seals of these hold what is left out here.
    apart = {run.log, run.environment, run.identity, run.config, last / MANIFEST, run.metrics, last / run.metrics.name}
    found: dict[str, Any] = {str(path.relative_to(out)): path.read_bytes() for path in kept if path not in apart}
    figures = [beside_the_measured(files.read_lines(path)) for path in (run.metrics, last / run.metrics.name)]
    assert figures[0] == figures[1]
    best = out / "best"
    return found | {"metrics": figures[0], "best": best.resolve().name if best.exists() else None}


def holdout_figures(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in row if key.startswith("holdout/")}


def unlike(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what differs."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model")))


STILL: dict[str, Any] = {
    "steps": 7,
    "guard": {"until_settled": True},
    "sampling": {"max_new_tokens": 3, "temperature": 0.01},
    "learn": {"lr": 1e-9, "population_lr": 1e-9, "mask_truncated": False, "lora": {"rank": 2}},
    "population": {"options": {"sigma": 1e-6}},
    # Something in what is cut off, so that there are labels.
    "vote": {"grader": "exact", "extract": "regex:(?s)^."},
}
"""A run in which nothing moves."""


@pytest.mark.parametrize(
    ("more", "steps", "verdict"),
    [
        ({"steps": 4, "baseline": True}, 4, "too early to tell"),
        # Every problem is visited in every step, and settled after the fourth.
        (STILL, 4, "too early to tell"),
        ({**STILL, "guard": {}}, 7, "settled"),
    ],
    ids=["learning", "settling", "still"],
)
def test_problems_held_out_move_nothing_that_is_trained(
    model: str, tmp_path: Path, more: dict[str, Any], steps: int, verdict: str
) -> None:
    ends = []
    for number, gold in enumerate((None, "56", "7")):
        settings = {**SETTINGS, **more, "problems_per_step": 4}
        if gold is not None:
            held = tmp_path / f"held{number}.jsonl"
            held.write_text("".join(json.dumps(row) + "\n" for row in rows(HELD[: 3 - number], gold)))
            settings |= {"holdout": str(held), "eval_every": 2}
        out = tmp_path / str(number)
        list(train_run(rows(TRAINED), model=model, out=str(out), **settings))
        ends.append(left_by(out))
    assert len(ends[0]["metrics"]) == steps
    assert json.loads(ends[0]["verdict.json"])["verdict"] == verdict
    for end in ends[1:]:
        assert not unlike(ends[0], end)


@pytest.mark.parametrize("labels", ["minds", "base", "average"])
def test_problems_held_out_are_in_no_group_no_vote_and_no_state(model: str, tmp_path: Path, labels: str) -> None:
    out, alone = tmp_path / "run", tmp_path / "alone"
    guard = {"flip_scaling": True, "keep_minorities": True, "skip_risky": True}
    settings = {**SETTINGS, "vote": {"grader": "exact", "labels": labels}, "guard": guard}
    list(train_run(rows(PROBLEMS), model=model, out=str(out), **settings, holdout=0.34, eval_every=3))
    run = RunDirectory(out)
    held, trained = ({row["id"] for row in files.read_lines(path)} for path in (run.holdout, run.problems))
    assert len(held) == 2
    assert sorted([*held, *trained]) == [p.id for p in PROBLEMS]
    in_groups = {row["id"] for step in range(1, 5) for row in files.read_lines(run.rollouts(step))}
    folder = run.checkpoint(4)
    known = in_groups | set(load_history(folder)) | set(json.loads((folder / "state.json").read_text())["labels"])
    assert known == trained
    assert {row["id"] for row in files.read_lines(run.answers)} == trained
    assert {row["id"] for row in files.read_lines(run.holdout_answers)} == held
    measured = [row["step"] for row in files.read_lines(run.metrics) if "holdout/agreement" in row]
    assert measured == [1, 4]
    list(train_run(rows([p for p in PROBLEMS if p.id in trained]), model=model, out=str(alone), **settings))
    assert not unlike(left_by(out), left_by(alone)), "a run on the others alone ends otherwise"


def test_no_rollout_of_a_problem_held_out_is_rewarded(model: str) -> None:
    asked = {"model": model, "problems.form": "raw", "sampling.max_new_tokens": 3, "population.options.sigma": 0.1}
    config = load_config(None, {**asked, "vote.grader": "exact", "vote.reward": "coin", "population.minds": 3})
    parts = [ProblemSet(part, AnswerKey({}), fingerprint(part), "rows") for part in (TRAINED, HELD)]
    session = open_session(config, parts[0], adapter=True, held=parts[1])
    assert session.held is not None
    assert all(tally.rewards_G for tally in survey(session))
    assert not any(tally.rewards_G for tally in survey(session.held))


def test_without_gold_the_label_free_measures_are_there(model: str, tmp_path: Path) -> None:
    problems = [{"id": p.id, "prompt": p.prompt} for p in PROBLEMS]
    out = tmp_path / "run"
    list(train_run(problems, model=model, out=str(out), **{**SETTINGS, "steps": 1, "holdout": 0.5}))
    (row,) = files.read_lines(out / "metrics.jsonl")
    assert row["holdout/accuracy"] is None
    assert row["holdout/label_accuracy"] is None
    assert 0 <= row["holdout/agreement"] <= 1


class Settling(ScriptedBackend):
    """Writes one answer to each problem, another one at first."""

    def rollouts(self, requests: Sequence[Request], weights: Weights = "policy") -> Iterator[tuple[int, Rollout]]:
        for index, rollout in super().rollouts(requests, weights):
            text = f" {1 if self.policy.version < 2 else 2}{index % 4 if self.policy.version < 4 else ''}\n"
            ids = tuple(self.policy.model.tokenizer(text)["input_ids"])
            made = Rollout(
                rollout.mind, rollout.prompt_ids, ids, (-0.5,) * len(ids), text, "stop", rollout.policy_version
            )
            yield index, made


def settling() -> Session:
    # Five of six problems a step: which ones depends on how far the run is.
    return tiny_session(backend=Settling, steps=30, problems_per_step=5, guard__until_settled=True)


def final(session: Session, run: RunDirectory) -> list[torch.Tensor]:
    assert not list(train(session, run, resume(run, session))), "it ends where it ended"
    return [p.detach().clone() for p in Learner(session.policy, session.config).trained.by_name.values()]


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_a_run_until_labels_are_settled_ends_early_and_resumes_to_the_byte(tmp_path: Path, stop: int) -> None:
    whole, left, killed = (RunDirectory(tmp_path / name) for name in ("whole", "left", "killed"))
    steps = [e.step for e in train(settling(), whole, Progress()) if isinstance(e, StepReport)]
    assert 6 < len(steps) < 15
    done, events = 0, train(settling(), left, Progress())
    for event in events:
        done = event.step if isinstance(event, StepReport) else done
        if done == stop and isinstance(event, Tally):
            break
    # In the middle of a step: what a killed process leaves, and one that could tidy up.
    shutil.copytree(left.path, killed.path, symlinks=True)
    events.close()
    for parted in (left, killed):
        second = settling()
        list(train(second, parted, resume(parted, second)))
        assert not unlike(left_by(whole.path), left_by(parted.path))
        for tensor, again in zip(final(settling(), whole), final(settling(), parted), strict=True):
            assert torch.equal(tensor, again)


def test_a_run_that_settles_with_problems_held_out_goes_on_to_the_byte(model: str, tmp_path: Path) -> None:
    vote = {"grader": "exact", "labels": "base", "extract": "regex:(?s)^."}
    settings = {**SETTINGS, **STILL, "vote": vote, "problems_per_step": 3, "holdout": 0.34, "eval_every": 1}
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    list(train_run(rows(PROBLEMS), model=model, out=str(whole), **settings))
    run = train_run(rows(PROBLEMS), model=model, out=str(parted), **settings)
    next(iter(run))
    run.close()
    list(train_run(resume=str(parted), quiet=True))
    assert not unlike(left_by(whole), left_by(parted))
    figures, again = (
        [holdout_figures(row) for row in files.read_lines(out / "metrics.jsonl")] for out in (whole, parted)
    )
    assert figures == again
    assert 4 < len(figures) < 7
    assert all(figures)
    for name in ("holdout.jsonl", "holdout.gold.jsonl", "holdout.answers.jsonl"):
        assert (whole / name).read_bytes() == (parted / name).read_bytes()


class Collapsing(ScriptedBackend):
    """Answers of each problem's own, of which ever more agree; from version 4 on all answers are 0."""

    def rollouts(self, requests: Sequence[Request], weights: Weights = "policy") -> Iterator[tuple[int, Rollout]]:
        version = self.policy.version
        size = len(requests) // 6
        for index, rollout in super().rollouts(requests, weights):
            problem, sample = divmod(index, size)
            text = " 0\n" if version >= 4 else f" {10 + problem if sample < 2 + version else 70 + sample}\n"
            ids = tuple(self.policy.model.tokenizer(text)["input_ids"])
            made = Rollout(
                rollout.mind, rollout.prompt_ids, ids, (-0.5,) * len(ids), text, "stop", rollout.policy_version
            )
            yield index, made


def test_a_run_that_collapses_falls_back_to_what_it_was_before(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    session = tiny_session(backend=Collapsing, steps=9, problems_per_step=6, population__minds=8)
    progress = Progress()
    reports = [e for e in train(session, run, progress) if isinstance(e, StepReport)]
    agreement = [float(report.metrics["vote/agreement"] or 0) for report in reports]
    assert agreement == sorted(agreement)
    assert agreement[-1] == 1.0
    verdict = judge(progress.metrics, progress.history, progress.history.moved(session.grader.same), 6)
    assert verdict.kind == "collapsing"
    assert progress.best_step == 3
    assert (run.path / "best").resolve() == run.checkpoint(3).resolve()
    assert fall_back(run, session, progress) == 3
    assert session.policy.version == 3
