"""`ttrl-pop report`: a page tells of a run what the run wrote, however far it came and whatever became of it."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from cli.commands import ttrl
from cli.damage import WAYS, in_time
from report.page.made import learner, made_run, questions

from ttrl_pop.cli.recorded import Recorder
from ttrl_pop.errors import TtrlPopError
from ttrl_pop.report.page.intervals import FIGURES
from ttrl_pop.store import files, identity

STEPS = 3
NEEDED = ("identity.json", "config.toml", "problems.jsonl", "gold.jsonl")
"""Files without which a run cannot be told."""
UNSEEN = ("a bit flipped", "a byte short", "cut at half", "empty", "nested")
"""What a file without a seal, whose last line may be under way, does not show."""
REST = ("metrics.jsonl", "baseline.jsonl", "answers.jsonl", "rollouts/step_0002.jsonl.zst")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    problems, gold = questions(5)
    folder = tmp_path_factory.mktemp("made") / "run"
    return made_run(folder, problems, gold, learner(0, STEPS, gold), done=STEPS).path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_votes_that_are_counted_anew_give_the_figures_of_the_run(run: Path):
    record = Recorder(run).record()
    for row in record.metrics:
        visits = [visit for problem in record.problems for visit in problem.visits if visit.step == row["step"]]
        for figure, part in FIGURES.items():
            assert sum(part(visit) or 0 for visit in visits) / len(visits) == pytest.approx(row[figure], abs=1e-12)
            low, high = record.intervals[figure][row["step"]]
            assert low <= row[figure] <= high
    assert record.finished
    assert record.notices == ()
    answers = {row["id"]: row for row in files.read_lines(run / "answers.jsonl")}
    assert {p.id: (p.after.label, p.after.right) for p in record.problems if p.after} == {
        key: (row["answer"], row["correct"]) for key, row in answers.items()
    }


def test_an_interval_is_not_drawn_around_a_figure_that_others_voted_for(run: Path):
    rows = [{**row, "vote/label_accuracy": 0.123} for row in files.read_lines(run / "metrics.jsonl")]
    files.write_lines(run / "metrics.jsonl", rows)
    assert "vote/label_accuracy" not in Recorder(run).record().intervals


def test_a_label_that_changes_has_flipped_and_silence_changes_none(tmp_path: Path):
    problems, gold = questions(1)
    said = {1: "7", 2: "", 3: "7.0", 4: "8"}
    write = lambda step, problem, mind: f"\\boxed{{{said[step]}}}" if said.get(step) else "no idea"  # noqa: E731
    run = made_run(tmp_path / "run", problems, gold, write, done=4, surveys=False)
    (problem,) = Recorder(run.path).record().problems
    assert [(visit.label, visit.flipped) for visit in problem.visits] == [
        ("7", False),
        (None, False),
        ("7.0", False),
        ("8", True),
    ]


def test_two_minds_that_differ_stand_beside_each_other(run: Path):
    for problem in Recorder(run).record().problems:
        for visit in problem.visits:
            first, second = visit.voices
            assert first.answer == visit.label
            assert (second.answer != visit.label) == (len(visit.votes) > 1 or visit.abstained > 0)


def test_the_page_goes_to_a_file_or_to_standard_output(run: Path, tmp_path: Path):
    file = tmp_path / "new" / "report.html"
    assert ttrl("report", run, "-o", file).stdout == ""
    assert ttrl("report", run).stdout == file.read_text()
    # Any path in a run is that run, and a run is shown once.
    assert ttrl("report", run / "rollouts", run).stdout == file.read_text()


def test_a_pipe_is_written_to_and_stays_one(run: Path, tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    ttrl("report", run, "-o", pipe)
    reader.join(10)
    assert read[0].startswith("<!doctype html>")
    assert pipe.is_fifo()


def test_runs_stand_side_by_side(run: Path, tmp_path: Path):
    problems, gold = questions(5)
    other = made_run(tmp_path / "other", problems, gold, learner(1, STEPS, gold), done=2, seed=5, surveys=False)
    data = data_of(ttrl("report", run, other.path).stdout)
    assert [each["name"] for each in data["runs"]] == ["run", "other"]
    assert {row["key"] for row in data["settings"] if row["differ"]} == {"steps", "seed", "baseline"}
    assert len(data["problems"]) == 5
    assert all(None not in each["rows"] for each in data["runs"])


def test_runs_of_one_name_are_called_by_their_paths(run: Path, tmp_path: Path):
    other = shutil.copytree(run, tmp_path / "elsewhere" / "run")
    assert [each["name"] for each in data_of(ttrl("report", run, other).stdout)["runs"]] == [str(run), str(other)]


def test_standard_output_is_utf_8_whatever_the_terminal_is(run: Path):
    command = [sys.executable, "-P", "-m", "ttrl_pop", "report", str(run)]
    result = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0, result.stderr
    assert "·" in result.stdout.decode("utf-8")


def test_a_run_that_is_under_way_is_told_as_far_as_it_has_come(run: Path):
    (run / "answers.jsonl").unlink()
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:50])
    record = Recorder(run).record()
    assert [row["step"] for row in record.metrics] == [1, 2]
    assert {len(problem.visits) for problem in record.problems} == {2}
    assert not record.finished
    assert record.notices == ()


def test_what_has_grown_is_read_again_and_nothing_else(run: Path):
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:2]))
    recorder = Recorder(run)
    before, stamp = recorder.record(), recorder.stamp()
    assert recorder.stamp() == stamp
    # Were it read again, it would be told.
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(lines[2])
    assert recorder.stamp() != stamp
    after = recorder.record()
    assert [len(problem.visits) for problem in after.problems] == [3] * 5
    assert after.problems[0].visits[0].voices is before.problems[0].visits[0].voices


@pytest.mark.parametrize("way", sorted(WAYS.keys() - {"a bomb"}))
@pytest.mark.parametrize("name", [*NEEDED, *REST])
def test_what_is_damaged_is_said_in_a_line_or_named(run: Path, name: str, way: str):
    whole = Recorder(run).record()
    WAYS[way](run / name, random.Random(0))
    found = error = None
    with in_time():
        try:
            found = Recorder(run).record()
        except TtrlPopError as raised:
            error = str(raised)
    if name in NEEDED:
        # A line end that is gone changes nothing.
        assert found == whole if error is None else "\n" not in error
    elif name == "metrics.jsonl" and way in UNSEEN:
        assert found
    elif name == "answers.jsonl" and way == "missing":
        assert found
        assert not found.finished
    else:
        assert found
        assert found != whole
        (notice,) = found.notices
        assert notice.startswith(name)


def test_notices_are_on_the_page_and_on_standard_error(run: Path):
    (run / "baseline.jsonl").write_text("{}\n")
    result = ttrl("report", run)
    assert result.stderr.startswith("ttrl-pop: run: baseline.jsonl has 3 bytes where")
    assert data_of(result.stdout)["runs"][0]["notices"][0] in result.stderr
    assert ttrl("report", run, "--quiet").stderr == ""


def test_what_is_no_run_is_said_in_a_line(tmp_path: Path):
    assert "neither a run directory nor" in ttrl("report", tmp_path, code=2).stderr


def test_a_grader_that_only_the_run_names_is_not_imported_unasked(tmp_path: Path):
    problems, gold = questions(1)
    name = "vote.graders.exact:ExactGrader"
    run = made_run(tmp_path / "run", problems, gold, learner(0, 1, gold), done=1, vote__grader=f"ttrl_pop.{name}")
    assert "Pass --trust" in ttrl("report", run.path, code=2).stderr
    ttrl("report", run.path, "--trust")


def test_without_vega_altair_it_is_said_what_to_install(run: Path):
    script = (
        f"import sys; sys.modules['altair'] = None; from ttrl_pop.cli.app import app; app(['report', {str(run)!r}])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "ttrl-pop: the page needs Vega-Altair and vl-convert. Install ttrl-pop[report].\n"


def test_a_page_is_made_without_torch(run: Path):
    script = (
        f"from pathlib import Path; from ttrl_pop.cli.recorded import Recorder; Recorder(Path({str(run)!r}))"
        ".record(); import sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("steps", "answers", "finished"), [(STEPS, True, True), (STEPS - 1, True, False), (STEPS, False, False)]
)
def test_a_run_that_was_settled_before_its_last_step_is_finished(
    tmp_path: Path, steps: int, answers: bool, finished: bool
) -> None:
    problems, gold = questions(2)
    write = learner(0, STEPS, gold)
    made = made_run(tmp_path / "run", problems, gold, write, done=STEPS, surveys=answers, steps=9, answers=True)
    verdict = {"verdict": "learning", "why": "", "steps": steps, "answers_of_step": steps}
    identity.record(made, made.verdict.name, json.dumps(verdict).encode())
    assert Recorder(made.path).record().finished is finished


def test_another_run_in_its_place_has_its_own_questions(tmp_path: Path):
    for number, count in enumerate((2, 3)):
        problems, gold = questions(count)
        made_run(tmp_path / str(number), problems, gold, learner(0, STEPS, gold), done=STEPS)
    recorder = Recorder(tmp_path / "0")
    assert len(recorder.record().problems) == 2
    (tmp_path / "0").rename(tmp_path / "old")
    (tmp_path / "1").rename(tmp_path / "0")
    assert [problem.gold for problem in recorder.record().problems] == ["0", "2", "6"]
