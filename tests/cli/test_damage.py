"""A run whose files are damaged: no traceback, no hang, and no wrong bytes without a word."""

import json
import os
import pickle
import random
import shutil
from pathlib import Path

import pytest
from cli.commands import rows_of, ttrl, write_lines
from cli.damage import WAYS, ended, outcome, remove, unsaid
from fakes import PROBLEMS, save_tiny

from ttrl_pop.store.reading import seal_of

STEPS = 3
CONFIG = """
model = {model}
steps = 3
problems_per_step = 2
baseline = true
[population]
minds = 3
[population.options]
sigma = "auto"
target_kl = 0.2
target_flips = 0.3
[sampling]
max_new_tokens = 2
temperature = 2.0
[problems]
form = "raw"
[vote]
grader = "exact"
extract = "regex:^[a-zA-Z0-9]?"
[learn]
lr = 1e-2
mask_truncated = false
[learn.lora]
rank = 2
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two problems, a run of three steps, and one of four that nothing happened to."""
    folder = tmp_path_factory.mktemp("damage")
    save_tiny(folder / "tiny")
    write_lines(folder / "p.jsonl", [{"id": p.id, "prompt": p.prompt, "answer": "3"} for p in PROBLEMS[:2]])
    (folder / "c.toml").write_text(CONFIG.format(model=json.dumps(str(folder / "tiny"))))
    for name, steps in (("run", STEPS), ("undisturbed", STEPS + 1)):
        arguments = ("--config", folder / "c.toml", "--steps", steps, "--out", folder / name, "--quiet")
        ttrl("run", folder / "p.jsonl", *arguments)
    return folder


FILES = (
    *("config.toml", "problems.jsonl", "gold.jsonl", "identity.json", "calibration.json", "baseline.jsonl"),
    *(
        "environment.json",
        "run.log",
        "metrics.jsonl",
        "answers.jsonl",
        "baseline.spent.json",
        "answers.spent.json",
        "verdict.json",
        "rollouts/step_0002.jsonl.zst",
        "rollouts/step_0003.jsonl.zst",
        "best",
    ),
    *("rollouts", "checkpoints", ".lock"),
    *(
        f"checkpoints/step_{step}/{name}"
        for step in ("0003", "0002")
        for name in (
            *("MANIFEST", "state.json", "problems.jsonl", "metrics.jsonl", "population.safetensors"),
            *("optimizer.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json", "adapter"),
        )
    ),
)
"""Everything that a run has, links and folders among it."""


def damaged(home: Path, out: Path, name: str, way: str, seed: int = 0) -> Path:
    """A copy of the run, to one file of which something has happened."""
    shutil.copytree(home / "run", out, symlinks=True)
    path = out / name
    if path.is_dir() and way not in ("missing", "a pipe", "a loop of links", "an endless device", "huge", "a bomb"):
        remove(path)
        path.write_bytes(b"a file where a folder was")
    else:
        WAYS[way](path, random.Random(f"{name} {way} {seed}"))
    return out


def try_commands(home: Path, out: Path, evaluate: bool = True) -> str:
    """Run every command on a damaged run; what going on with it said."""
    ended("problems", out)
    if evaluate:
        ended("eval", home / "p.jsonl", "--run", out)
    resumed = ended("run", "--resume", out, "--steps", STEPS + 1)
    if resumed.exit_code == 0:
        assert unsaid(out, outcome(home / "undisturbed"), resumed.stderr) == []
        assert rows_of(resumed.stdout) == rows_of((home / "undisturbed" / "answers.jsonl").read_text())
    return resumed.stderr


def test_every_file_of_a_run_is_damaged_here(home: Path) -> None:
    there = {str(path.relative_to(home / "run")) for path in (home / "run").rglob("*")}
    assert set(FILES) <= there
    assert [name for name in there - set(FILES) if not name.startswith(("checkpoints/step_", "rollouts/"))] == []


def test_an_undamaged_run_goes_on_without_a_word(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(home / "run", out, symlinks=True)
    said = try_commands(home, out).splitlines()
    assert [line.split()[0] for line in said[:2]] == ["run", "step"]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_whatever_happens_to_a_file_is_one_line_or_changes_nothing(home: Path, tmp_path: Path, way: str) -> None:
    for number, name in enumerate(FILES):
        out = tmp_path / str(number)
        try:
            try_commands(home, damaged(home, out, name, way), evaluate=(number + [*WAYS].index(way)) % 3 == 0)
        except BaseException as error:
            error.add_note(f"{name}: {way}")
            raise
        remove(out)


def said_of(home: Path, out: Path, name: str, way: str, code: int = 0) -> str:
    """What going on with the damaged run says of it."""
    resumed = ended("run", "--resume", damaged(home, out, name, way), "--steps", STEPS + 1)
    assert resumed.exit_code == code, resumed.stderr
    return resumed.stderr


@pytest.mark.parametrize(
    ("name", "way", "message"),
    [
        ("identity.json", "null", "identity.json: must hold a JSON object, holds NoneType; put it back from a copy"),
        (
            "identity.json",
            "an object",
            "identity.json: has no seal, as other versions wrote it, or has been changed; put",
        ),
        ("identity.json", "a folder", "identity.json: is a folder where a file has to be; put it back from a copy"),
        ("gold.jsonl", "an object", "gold.jsonl: has 3 bytes where 56 were written; put it back from a copy"),
        ("gold.jsonl", "a loop of links", "gold.jsonl: cannot be read (Too many levels of symbolic links); put it"),
        ("problems.jsonl", "a pipe", "problems.jsonl: is a pipe where a file has to be; put it back from a copy"),
        ("config.toml", "an endless device", "config.toml: is a device where a file has to be; put it back"),
        ("config.toml", "a bit flipped", "config.toml: has other bytes than were written; put it back from a copy"),
        (".lock", "a folder", ".lock: cannot be locked (Is a directory); take it away"),
        (".lock", "a pipe", ".lock: cannot be locked (no regular file); take it away"),
        ("answers.jsonl", "a folder", "answers.jsonl: must be a file; move the folder that stands there away"),
        ("metrics.jsonl", "a folder", "metrics.jsonl: cannot be written (Is a directory: "),
        ("checkpoints", "empty", "checkpoints: must be a folder; move what stands there away"),
    ],
)
def test_a_run_that_cannot_go_on_says_which_file_is_wrong_and_what_to_do(
    home: Path, tmp_path: Path, name: str, way: str, message: str
) -> None:
    out = tmp_path / "run"
    said = said_of(home, out, name, way, code=1 if name in WRITTEN else 2)
    assert f"ttrl-pop: {out}/{message}" in said.splitlines()[-1]


WRITTEN = {"checkpoints", "answers.jsonl", "metrics.jsonl", "verdict.json"}
"""In whose place something stands when they are written."""

NEWEST = "checkpoints/step_0003"


@pytest.mark.parametrize(
    ("name", "way", "message"),
    [
        (
            f"{NEWEST}/MANIFEST",
            "nested",
            f"{NEWEST} is not a whole checkpoint (MANIFEST is nested too deeply); the",
        ),
        (f"{NEWEST}/MANIFEST", "a list", "(MANIFEST must hold a JSON object, holds list); the one before is taken"),
        (f"{NEWEST}/state.json", "huge", "(state.json has 68719476736 bytes where "),
        (
            f"{NEWEST}/optimizer.safetensors",
            "a bit flipped",
            "(optimizer.safetensors has other bytes than were",
        ),
        ("checkpoints/step_0002/state.json", "missing", "(state.json is not there); the run goes on without"),
        ("checkpoints/step_0002", "missing", "checkpoints/step_0002 is gone; the run goes on without"),
        (
            "metrics.jsonl",
            "null",
            "metrics.jsonl: has other rows than the steps gave; it is written anew from step_0003",
        ),
        ("metrics.jsonl", "missing", "metrics.jsonl: is not there; it is written anew from step_0003"),
        ("rollouts/step_0001.jsonl.zst", "cut at half", "step_0001.jsonl.zst: is cut off; the run goes on without"),
        ("rollouts/step_0001.jsonl.zst", "a bomb", "holds more than 1000 times its own size"),
        ("calibration.json", "an object", "calibration.json: has 3 bytes where "),
        ("baseline.jsonl", "missing", "baseline.jsonl: is not there; the run goes on without"),
        ("environment.json", "a bit flipped", "environment.json: has other bytes than were written; where the run"),
        ("run.log", "a folder", "run.log: cannot be written (Is a directory); the run goes on without its log"),
        ("run.log", "a pipe", "run.log: cannot be written (no regular file); the run goes on without its log"),
        ("run.log", "an endless device", "run.log: cannot be written (Too many levels of symbolic links); the run"),
    ],
)
def test_a_run_that_goes_on_says_what_it_has_lost(
    home: Path, tmp_path: Path, name: str, way: str, message: str
) -> None:
    out = tmp_path / "run"
    said = said_of(home, out, name, way)
    assert message in said
    assert unsaid(out, outcome(home / "undisturbed"), said) == []


def test_answers_that_were_changed_are_given_again(home: Path, tmp_path: Path) -> None:
    out = damaged(home, tmp_path / "run", "answers.jsonl", "a bit flipped")
    resumed = ended("run", "--resume", out)
    assert "answers.jsonl: has other bytes than were written; the problems are answered again" in resumed.stderr
    assert resumed.stdout == (home / "run" / "answers.jsonl").read_text()


def test_a_checkpoint_too_many_is_pruned_at_resume(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(home / "undisturbed", out, symlinks=True)
    kept = {path.name for path in (out / "checkpoints").iterdir()}
    assert "step_0002" not in kept
    # As a kill between saving and pruning leaves it.
    shutil.copytree(home / "run" / "checkpoints" / "step_0002", out / "checkpoints" / "step_0002")
    (out / "checkpoints" / ".saving-step_0005").mkdir()
    ended("run", "--resume", out)
    assert {path.name for path in (out / "checkpoints").iterdir()} == kept


@pytest.mark.parametrize("way", ["a pipe", "a bit flipped", "an endless device"])
def test_a_damaged_checkpoint_that_was_named_is_refused(home: Path, tmp_path: Path, way: str) -> None:
    name = f"{NEWEST}/population.safetensors"
    folder = damaged(home, tmp_path / "run", name, way) / NEWEST
    for command in (("problems", folder), ("eval", home / "p.jsonl", "--run", folder)):
        refused = ended(*command)
        assert refused.exit_code == 1
        assert f"{folder} is not a whole checkpoint (population.safetensors " in refused.stderr


class Pickled:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_nothing_of_a_run_is_unpickled(home: Path, tmp_path: Path) -> None:
    out, mark = tmp_path / "run", tmp_path / "ran"
    shutil.copytree(home / "run", out, symlinks=True)
    folder = out / NEWEST
    for name in ("adapter/adapter_model.safetensors", "population.safetensors", "adapter/adapter_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Pickled(mark)))
        names = [*json.loads((folder / "MANIFEST").read_text()), "adapter/adapter_model.bin"]
        seals = {each: seal_of(folder / each) for each in names if (folder / each).exists()}
        (folder / "MANIFEST").write_text(json.dumps(seals))
        refused = ended("eval", home / "p.jsonl", "--run", out)
        assert refused.exit_code
        assert "holds no tensors" in refused.stderr
        assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("state.json", {"format": 5}, "state.json must hold a step and a policy version"),
        ("state.json", {"format": 9, "step": 3, "policy_version": 3}, "has checkpoint format 9; this version reads 5"),
        ("state.json", {"format": 5, "step": 3, "policy_version": 3}, "state.json: best_step: Field required"),
        ("metrics.jsonl", {"step": 1}, "metrics.jsonl: must hold the figures of steps 1 to 3, one row each"),
        ("problems.jsonl", {"id": "p"}, "problems.jsonl: row 1, label: Field required"),
    ],
)
def test_a_checkpoint_that_is_whole_and_holds_something_else_is_one_line(
    home: Path, tmp_path: Path, name: str, content: dict[str, object], message: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(home / "run", out, symlinks=True)
    folder = out / NEWEST
    (folder / name).write_text(json.dumps(content) + "\n")
    names = json.loads((folder / "MANIFEST").read_text())
    (folder / "MANIFEST").write_text(json.dumps({each: seal_of(folder / each) for each in names}))
    ended("problems", out)
    ended("eval", home / "p.jsonl", "--run", out)
    refused = ended("run", "--resume", out)
    assert refused.exit_code == 1
    assert message in refused.stderr


@pytest.mark.parametrize("name", ["checkpoints", "rollouts", "fit"])
def test_a_folder_of_a_run_that_leads_out_of_it_is_refused_and_stays_as_it_is(
    home: Path, tmp_path: Path, name: str
) -> None:
    out, mine = tmp_path / "run", tmp_path / "mine"
    shutil.copytree(home / "run", out, symlinks=True)
    (out / name).rename(mine) if name != "fit" else mine.mkdir()
    before = sorted(mine.rglob("*"))
    (out / name).symlink_to(mine)
    said = ttrl("run", "--resume", out, "--steps", STEPS + 1, "--quiet", code=1).stderr
    assert (
        said == f"ttrl-pop: {out / name}: must be a folder in the run, leads to {mine}; put the folder itself there\n"
    )
    assert sorted(mine.rglob("*")) == before


def test_a_run_behind_a_link_and_with_links_inside_goes_on(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "real"
    shutil.copytree(home / "run", out, symlinks=True)
    (out / "rollouts").rename(out / "elsewhere")
    (out / "rollouts").symlink_to("elsewhere")
    (tmp_path / "link").symlink_to(out)
    ttrl("run", "--resume", tmp_path / "link", "--steps", STEPS + 1, "--quiet")


def test_links_in_a_run_of_somebody_else_lead_no_write_out_of_it(home: Path, tmp_path: Path) -> None:
    out, mine = tmp_path / "run", tmp_path / "mine"
    shutil.copytree(home / "run", out, symlinks=True)
    mine.write_text("mine")
    for name in (".metrics.jsonl.tmp", ".identity.json.tmp", ".answers.jsonl.tmp", "metrics.jsonl", "answers.jsonl"):
        remove(out / name)
        (out / name).symlink_to(mine)
    ended("run", "--resume", out, "--steps", STEPS + 1)
    assert mine.read_text() == "mine"
    remove(out / ".lock")
    (out / ".lock").symlink_to(mine)
    assert ended("run", "--resume", out).stderr.endswith(
        "cannot be locked (Too many levels of symbolic links); take it away\n"
    )
    assert mine.read_text() == "mine"
