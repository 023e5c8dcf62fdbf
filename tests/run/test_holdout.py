"""Problems held out never enter a group, a vote that trains, or calibration; a run that collapses falls back."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import PROBLEMS, ScriptedBackend, save_tiny, tiny_session

from ttrl_pop.api.training import train as train_run
from ttrl_pop.learn.learner import Learner
from ttrl_pop.run.progress import Progress, fall_back, load_history, resume
from ttrl_pop.run.session import Session
from ttrl_pop.run.verdict import judge
from ttrl_pop.sample.backend import Request, Weights
from ttrl_pop.store import files
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.train import train
from ttrl_pop.types import Rollout, StepReport

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


def trained_bytes(out: Path, step: int = 4) -> list[bytes]:
    last = RunDirectory(out).checkpoint(step)
    names = ("adapter/adapter_model.safetensors", "population.safetensors", "optimizer.safetensors", "problems.jsonl")
    return [(last / name).read_bytes() for name in names] + [(out / "calibration.json").read_bytes()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model")))


def test_problems_held_out_move_nothing_that_is_trained(model: str, tmp_path: Path) -> None:
    ends = []
    for number, gold in enumerate((None, "56", "7")):
        settings = dict(SETTINGS)
        if gold is not None:
            held = tmp_path / f"held{number}.jsonl"
            held.write_text("".join(json.dumps(row) + "\n" for row in rows(HELD[: 3 - number], gold)))
            settings |= {"holdout": str(held), "eval_every": 2}
        out = tmp_path / str(number)
        list(train_run(rows(TRAINED), model=model, out=str(out), **settings))
        ends.append([*trained_bytes(out), (out / "answers.jsonl").read_bytes()])
    assert ends[0] == ends[1] == ends[2]


@pytest.mark.parametrize("labels", ["minds", "base", "average"])
def test_problems_held_out_are_in_no_group_no_vote_and_no_state(model: str, tmp_path: Path, labels: str) -> None:
    out = tmp_path / "run"
    settings = {**SETTINGS, "vote": {"grader": "exact", "labels": labels}, "holdout": 0.34, "eval_every": 3}
    list(train_run(rows(PROBLEMS), model=model, out=str(out), **settings))
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
    return tiny_session(backend=Settling, steps=30, problems_per_step=6, guard__until_settled=True)


def final(session: Session, run: RunDirectory) -> list[torch.Tensor]:
    assert not list(train(session, run, resume(run, session))), "it ends where it ended"
    return [p.detach().clone() for p in Learner(session.policy, session.config).trained.by_name.values()]


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_a_run_until_labels_are_settled_ends_early_and_resumes_to_the_byte(tmp_path: Path, stop: int) -> None:
    whole, parted = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "parted")
    session = settling()
    steps = [e.step for e in train(session, whole, Progress()) if isinstance(e, StepReport)]
    assert 6 < len(steps) < 15
    events = train(settling(), parted, Progress())
    for event in events:
        if isinstance(event, StepReport) and event.step == stop:
            break
    events.close()
    second = settling()
    list(train(second, parted, resume(parted, second)))
    for name in ("adapter/adapter_model.safetensors", "population.safetensors", "state.json", "problems.jsonl"):
        one, other = ((run.checkpoint(len(steps)) / name).read_bytes() for run in (whole, parted))
        assert one == other
    for tensor, again in zip(final(settling(), whole), final(settling(), parted), strict=True):
        assert torch.equal(tensor, again)


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
