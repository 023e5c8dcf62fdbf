"""Studies end to end on a tiny model: each run is a run, what was killed goes on to the same rows."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.commands import rows_of, ttrl, write_lines
from fakes import PROBLEMS
from numpy.typing import NDArray

from ttrl_pop.config import ProblemsConfig
from ttrl_pop.config_file import load_config
from ttrl_pop.model.logprobs import token_logprobs
from ttrl_pop.read.problems import read_problems
from ttrl_pop.run.session import open_session
from ttrl_pop.run.survey import survey
from ttrl_pop.store import files, identity
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.study.texts import text_rows

STUDY = """
seeds = 2
[settings]
baseline = true
steps = 2
vote.extract = "fakes:kind_of_letter"
[arms.majority]
[arms.again]
[arms.coin]
vote.reward = "coin"
[arms.base]
steps = 0
baseline = false
population.name = "none"
population.minds = 1
[equal_tokens]
base = "majority"
"""
ARMS = ["majority", "again", "coin", "base"]


@pytest.fixture(scope="module")
def design(place: Path) -> Path:
    """A study's file, and gold answers beside it."""
    folder = place / "studies"
    folder.mkdir()
    write_lines(
        folder / "gold.jsonl", [{"id": p.id, "answer": "capital" if p.index % 2 else "other"} for p in PROBLEMS]
    )
    (folder / "mine.toml").write_text(STUDY)
    return folder


def arguments(place: Path, design: Path, out: Path, *more: object) -> list[object]:
    given = [design / "mine.toml", place / "p.jsonl", "--gold", design / "gold.jsonl", "--config", place / "c.toml"]
    return ["study", *given, "--out", out, *more]


@pytest.fixture(scope="module")
def undisturbed(place: Path, design: Path) -> tuple[Path, str]:
    """A study that nothing stopped, and its rows."""
    out = design / "undisturbed"
    return out, ttrl(*arguments(place, design, out)).stdout


def arms(text: str) -> dict[str, dict[str, Any]]:
    return {row["arm"]: row for row in rows_of(text) if row["kind"] == "arm"}


def differences(text: str) -> dict[str, dict[str, Any]]:
    return {row["arm"]: row for row in rows_of(text) if row["kind"] == "difference"}


def test_every_cell_is_a_run_like_any_other(place: Path, undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    out = undisturbed[0]
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == sorted(
        f"{a}-{s}" for a in ARMS for s in "01"
    )
    alone = tmp_path / "alone"
    config = out / "coin-1" / "config.toml"
    ttrl("run", out / "problems.jsonl", "--config", config, "--gold", out / "gold.jsonl", "--out", alone)
    for name in ("answers.jsonl", "baseline.jsonl", "answers.spent.json"):
        assert (alone / name).read_bytes() == (out / "coin-1" / name).read_bytes()


def test_rows_are_means_of_what_the_runs_say(undisturbed: tuple[Path, str]) -> None:
    out, text = undisturbed
    found = arms(text)
    assert [*found] == ARMS
    for arm, row in found.items():
        answers = [list(files.read_lines(RunDirectory(out / f"{arm}-{seed}").answers)) for seed in (0, 1)]
        accuracies = [answer["accuracy"] for run in answers for answer in run]
        assert 0 < row["accuracy"] < 1
        assert row["accuracy"] == pytest.approx(sum(accuracies) / len(accuracies))
        low, high = row["intervals"]["accuracy"]
        assert low < row["accuracy"] < high
        assert (row["seeds"], row["problems"]) == (2, 6)


def test_two_arms_of_the_same_settings_differ_by_nothing(undisturbed: tuple[Path, str]) -> None:
    found = differences(undisturbed[1])
    figures = {key: value for key, value in found["again"].items() if isinstance(value, float)}
    assert {"accuracy", "label_accuracy", "agreement", "gain", "pass@2", "maj@2", "pass@3", "maj@3"} <= figures.keys()
    assert set(figures.values()) == {0.0}
    assert {tuple(pair) for pair in found["again"]["intervals"].values()} == {(0.0, 0.0)}
    assert any(value != 0 for value in found["coin"].values() if isinstance(value, float))


def test_the_untrained_arm_gets_as_many_tokens(undisturbed: tuple[Path, str]) -> None:
    found = arms(undisturbed[1])
    assert found["base"]["tokens"] == pytest.approx(found["majority"]["tokens"], rel=0.1)
    assert "labels" not in found["base"]


def test_tokens_are_those_that_were_written(undisturbed: tuple[Path, str]) -> None:
    out, text = undisturbed
    tokens = 0
    for seed in (0, 1):
        run = RunDirectory(out / f"coin-{seed}")
        for step in (1, 2):
            tokens += sum(len(row["completion_ids"]) for row in files.read_lines(run.rollouts(step)))
        tokens += json.loads((run.path / "answers.spent.json").read_text())["tokens"]
    assert arms(text)["coin"]["tokens"] == tokens / 2


def test_a_study_that_is_done_says_it_again(undisturbed: tuple[Path, str]) -> None:
    out, text = undisturbed
    assert ttrl("study", "--resume", out).stdout == text
    found = ttrl("study", "--resume", out).stderr
    assert "majority" in found
    assert "±" in found
    assert ttrl("study", "--resume", out, "--quiet").stderr == ""


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.slow
def test_stopped_at_any_write_it_ends_with_the_same_rows(
    place: Path, design: Path, undisturbed: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, fsync = tmp_path / "stopped", os.fsync
    left, stops = 0, 0

    def write(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", write)
    chance = random.Random(19)
    command = arguments(place, design, out)
    for _ in range(80):
        left = chance.randint(1, 36)
        try:
            text = ttrl(*command).stdout
        except Killed:
            stops += 1
        else:
            break
        if (out / "study.toml").exists():
            # Between the folder and the note that its code may be imported is a moment, too.
            command = ["study", "--resume", out, "--trust"]
    assert stops >= 10
    assert text == undisturbed[1]


def test_the_beginning_of_a_run_that_never_was_is_begun_again(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    out = Path(shutil.copytree(undisturbed[0], tmp_path / "copy", symlinks=True))
    run = out / "base-1"
    (run / "identity.json").unlink()
    message = ttrl("study", "--resume", out, "--trust", code=2).stderr
    assert f"{run}: a run of the study without identity.json, which cannot go on; put that file back" in message
    assert (run / "answers.jsonl").exists()
    for path in run.iterdir():
        if path.name not in ("config.toml", "problems.jsonl"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    assert ttrl("study", "--resume", out, "--trust").stdout == undisturbed[1]


def test_what_is_lost_of_a_run_that_is_done_is_put_back_or_named(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    out = Path(shutil.copytree(undisturbed[0], tmp_path / "copy", symlinks=True))
    metrics = out / "again-1" / "metrics.jsonl"
    whole = metrics.read_bytes()
    for damage in (b"", whole[: whole.index(b"\n") + 1], None):
        metrics.write_bytes(damage) if damage is not None else metrics.unlink()
        assert ttrl("study", "--resume", out, "--trust").stdout == undisturbed[1]
        assert metrics.read_bytes() == whole
    # Figures before and after are of one run, and the base model is not asked again by half of one.
    run = out / "coin-0"
    (run / "baseline.jsonl").unlink()
    message = ttrl("study", "--resume", out, "--trust", code=2).stderr
    assert f"{run / 'baseline.jsonl'}: is not there" in message
    assert f"or move {run} away, and --resume makes that run anew" in " ".join(message.split())
    shutil.rmtree(run)
    assert ttrl("study", "--resume", out, "--trust").stdout == undisturbed[1]


def test_a_run_of_a_study_that_is_a_link_out_of_it_is_not_gone_on_with(
    undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(undisturbed[0], tmp_path / "copy", symlinks=True))
    mine = (out / "again-0").rename(tmp_path / "mine")
    (out / "again-0").symlink_to(mine)
    # It has ended, and is read alone.
    assert ttrl("study", "--resume", out, "--trust").stdout == undisturbed[1]
    (mine / "answers.jsonl").unlink()
    before = sorted(mine.rglob("*"))
    message = ttrl("study", "--resume", out, "--trust", code=2).stderr
    assert f"{out / 'again-0'}: must be a folder in the study, leads to {mine}" in " ".join(message.split())
    assert sorted(mine.rglob("*")) == before


def test_a_study_holds_no_problems_out(place: Path, design: Path, tmp_path: Path) -> None:
    command = arguments(place, design, tmp_path / "out")
    message = ttrl(*command, "--set", "holdout=0.2", code=2).stderr
    assert "runs of a study train on all problems and are judged by them; leave holdout out" in message


def test_code_that_a_study_from_elsewhere_names_is_not_imported(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    out = Path(shutil.copytree(undisturbed[0], tmp_path / "copy", symlinks=True))
    found = ttrl("study", "--resume", out, code=2).stderr
    assert f"{out / 'study.toml'} names code that is not part of this program: vote.extract = fakes:kind_of" in found
    assert ttrl("study", "--resume", out, "--trust").stdout == undisturbed[1]
    assert ttrl("study", "--resume", out).stdout == undisturbed[1]


@pytest.mark.slow
def test_killed_it_ends_with_the_same_rows(
    place: Path, design: Path, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "ttrl_pop", *map(str, arguments(place, design, out))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path
    )
    try:
        limit = time.monotonic() + 120
        while not (out / "again-0" / "metrics.jsonl").exists():
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (out / "base-1" / "answers.jsonl").exists()
    assert ttrl("study", "--resume", out).stdout == undisturbed[1]


def test_gold_is_left_out_where_there_is_none(place: Path, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('seeds = 1\n[settings]\nsteps = 1\n[arms.a]\n[arms.g]\nvote.reward = "gold"\n')
    out = tmp_path / "out"
    found = ttrl("study", tmp_path / "s.toml", place / "p.jsonl", "--config", place / "c.toml", "--out", out)
    assert "left out: g; 6 of 6 problems have no gold answer" in found.stderr
    (row,) = rows_of(found.stdout)
    assert row["arm"] == "a"
    assert "accuracy" not in row


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["controls"], "leave STUDY out"),
        (["--seeds", 3], "leave --seeds out"),
        (["--plan"], "leave --plan out"),
        (["--steps", 3], "leave steps out"),
        (["--preset", "tiny"], "leave --preset out"),
    ],
)
def test_a_study_goes_on_as_it_was_begun(undisturbed: tuple[Path, str], more: list[object], message: str) -> None:
    assert message in ttrl("study", *more[:1], *more[1:], "--resume", undisturbed[0], code=2).stderr


def test_another_folder_is_no_study(place: Path, undisturbed: tuple[Path, str], design: Path, tmp_path: Path) -> None:
    assert "not the folder of a study" in ttrl("study", "--resume", tmp_path, code=2).stderr
    found = ttrl(*arguments(place, design, undisturbed[0]), code=2)
    assert f"pass --resume {undisturbed[0]} or another --out" in found.stderr
    assert "study needs STUDY and PROBLEMS" in ttrl("study", code=2).stderr


def test_a_plan_counts_what_all_runs_write(
    place: Path, design: Path, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    out = tmp_path / "planned"
    planned = rows_of(ttrl(*arguments(place, design, out, "--plan", "--json", "--quiet")).stdout)
    assert not out.exists()
    work = {row["part"]: row for row in planned if row["kind"] == "work"}
    assert [*work] == [*ARMS, "all"]
    for arm in ("majority", "coin"):
        baseline = 2 * 6 * 3
        assert work[arm]["rollouts"] == 2 * arms(undisturbed[1])[arm]["rollouts"] + baseline
    assert {row["part"] for row in planned if row["kind"] == "disk"} == {*ARMS, "all"}


TEXTS = """
seeds = 2
problems = "p.jsonl"
[settings]
steps = 0
baseline = false
population.name = "none"
[arms.start]
sampling.temperature = 0.5
[arms.warm]
sampling.temperature = 2.0
[arms.minds]
sampling.temperature = 0.5
population.name = "norm-noise"
population.options.sigma = 1.0
[curves]
heat = ["start", "warm"]
minds = ["start", "minds"]
"""


class Letters:
    """An embedding that needs no model: how often each letter comes."""

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        counts = np.array([[1 + text.count(chr(code)) for code in range(97, 123)] for text in texts], dtype=np.float64)
        lengths: NDArray[np.float64] = np.linalg.norm(counts, axis=1, keepdims=True)
        return counts / lengths


@pytest.fixture
def of_texts(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The command of a study that compares texts, which asks problems of its own."""
    for module in ("ttrl_pop.study.texts", "ttrl_pop.cli.cells"):
        monkeypatch.setattr(f"{module}.embedder", Letters)
    shutil.copy(place / "p.jsonl", tmp_path / "p.jsonl")
    (tmp_path / "texts.toml").write_text(TEXTS)
    return ["study", tmp_path / "texts.toml", "--config", place / "c.toml", "--out", tmp_path / "out"]


def test_texts_are_compared_at_equal_coherence(of_texts: list[object], tmp_path: Path) -> None:
    found = ttrl(*of_texts)
    out = tmp_path / "out"
    assert [row["kind"] for row in rows_of(found.stdout)] == ["arm"] * 3 + ["difference"] * 2 + ["equal coherence"] * 3
    for arm, row in arms(found.stdout).items():
        texts = [list(files.read_lines(RunDirectory(out / f"{arm}-{seed}").texts)) for seed in (0, 1)]
        assert [len(rows) for rows in texts] == [18, 18]
        by_problem = [[r["coherence"] for r in rows if r["id"] == p.id] for rows in texts for p in PROBLEMS]
        assert row["coherence"] == pytest.approx(np.mean([np.mean(values) for values in by_problem]))
        assert row["tokens"] == sum(r["tokens"] for rows in texts for r in rows) / 2
        assert 0 <= row["distance"] <= 1
        assert "agreement" not in row
    equal = rows_of(found.stdout)[-1]
    assert (equal["arm"], equal["to"]) == ("minds", "heat")
    assert "distance" in equal["intervals"]
    assert "minds minus heat" in found.stderr
    assert ttrl("study", "--resume", out).stdout == found.stdout


def test_a_text_is_as_coherent_as_the_base_model_finds_it(of_texts: list[object], tmp_path: Path) -> None:
    ttrl(*of_texts, "--seeds", 1)
    run = RunDirectory(tmp_path / "out" / "minds-0")
    session = open_session(
        load_config(run.config, {}), read_problems(str(run.problems), ProblemsConfig()), adapter=True
    )
    tallies = list(survey(session))
    rows = [row for tally in tallies for row in text_rows(session, [tally])]
    assert rows == list(files.read_lines(run.texts))
    rollouts = [rollout for tally in tallies for rollout in tally.group.rollouts_G]
    logprobs = [float(token_logprobs(session.policy, [r], None, 1.0)[0].detach().mean()) for r in rollouts]
    assert [row["coherence"] for row in rows] == pytest.approx(logprobs)
    own = [float(token_logprobs(session.policy, [r], [r.mind], 1.0)[0].detach().mean()) for r in rollouts]
    assert np.mean(own) > np.mean(logprobs)


def test_texts_are_kept_where_there_is_a_baseline_of_the_same_policy(of_texts: list[object], tmp_path: Path) -> None:
    without = rows_of(ttrl(*of_texts, "--seeds", 1).stdout)
    shutil.rmtree(tmp_path / "out")
    found = rows_of(ttrl(*of_texts, "--seeds", 1, "--set", "baseline=true").stdout)
    assert [row.get("distance") for row in found] == [row.get("distance") for row in without]
    assert [row.get("tokens") for row in found] == [row.get("tokens") for row in without]


def test_texts_of_a_run_that_was_cut_off_are_written_again(of_texts: list[object], tmp_path: Path) -> None:
    found = ttrl(*of_texts).stdout
    run = RunDirectory(tmp_path / "out" / "warm-1")
    before = run.texts.read_bytes()
    run.answers.unlink()
    run.texts.write_bytes(before[:40])
    assert ttrl("study", "--resume", tmp_path / "out").stdout == found
    assert run.texts.read_bytes() == before


def test_a_study_needs_problems_where_it_has_none() -> None:
    assert "study zero-shot needs PROBLEMS: ttrl-pop study zero-shot" in ttrl("study", "zero-shot", code=2).stderr


def data_of(page: Path) -> dict[str, Any]:
    """The data that a page draws."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_the_page_of_a_study_shows_a_run_of_each_arm_and_where_its_texts_lie(
    of_texts: list[object], tmp_path: Path
) -> None:
    pytest.importorskip("altair")
    ttrl(*of_texts)
    out, file = tmp_path / "out", tmp_path / "page.html"
    ttrl("report", out, "-o", file)
    data = data_of(file)
    assert [run["name"] for run in data["runs"]] == ["start-0", "warm-0", "minds-0"]
    places = data["texts"]["places"]
    assert [len(own) for own in places] == [18, 18, 18]
    spread = [np.array(own).std() for own in places]
    assert spread[1] > 0
    # Answers to each question lie around its mean.
    assert np.abs(np.concatenate(places).mean(0)) == pytest.approx(0, abs=1e-3)
    ttrl("report", out / "start-0", "-o", file)
    texts = RunDirectory(out / "start-0").texts
    identity.record(RunDirectory(out / "start-0"), texts.name, files.encode_lines(texts, [{"id": "p0", "text": "x"}]))
    file.unlink()
    assert f"{texts}: Field required: its texts are not shown" in ttrl("report", out, "-o", file).stderr
    assert file.exists(), "all else is whole"


def test_a_page_without_texts_has_no_place_for_them(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    pytest.importorskip("altair")
    ttrl("report", undisturbed[0], "--trust", "-o", tmp_path / "page.html")
    data = data_of(tmp_path / "page.html")
    assert [run["name"] for run in data["runs"]] == [f"{arm}-0" for arm in ARMS]
    assert "texts" not in data
