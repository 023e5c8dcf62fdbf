"""`ttrl-pop export` and `push`: what they write, print and refuse."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from cli.commands import STEPS, rows_of, run, ttrl
from huggingface_hub.errors import RepositoryNotFoundError
from typer.testing import Result

from ttrl_pop.errors import TtrlPopError, UsageError
from ttrl_pop.export import export as exporting
from ttrl_pop.export import hub, plain
from ttrl_pop.model.load import load_model
from ttrl_pop.model.source import locate
from ttrl_pop.store import identity
from ttrl_pop.store.directory import RunDirectory


@pytest.fixture(scope="module")
def plain_run(place: Path) -> Path:
    """A run whose mean mind folds into biases."""
    out = place / "plain"
    run(place, out, "--gold", place / "gold.jsonl", "--set", "population.options.final_mu=false", "--quiet")
    return out


@pytest.fixture(scope="module")
def exported(plain_run: Path, place: Path) -> tuple[Path, Result]:
    folder = place / "exported"
    return folder, ttrl("export", plain_run, "-o", folder)


def test_a_run_is_exported_and_says_how_near_it_is(exported: tuple[Path, Result]) -> None:
    folder, result = exported
    (row,) = rows_of(result.stdout)
    assert row.pop("folder") == str(folder)
    assert (row["form"], row["mind"], row["step"]) == ("plain", None, STEPS)
    assert row["gap"] < 1e-4 * row["size"]
    assert row["equal"] == row["prompts"] == 6
    assert json.loads((folder / "ttrl_pop.json").read_text()) == row
    assert "greedy completions equal, in float32" in result.stderr
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]


def test_the_card_says_what_it_was_trained_on_and_how_to_load_it(exported: tuple[Path, Result], place: Path) -> None:
    from huggingface_hub import ModelCard

    folder, _ = exported
    made = ModelCard.load(folder / "README.md")
    assert made.data.library_name == "transformers"
    assert "**Trained on the very problems below.**" in made.text
    assert 'AutoModelForCausalLM.from_pretrained("PATH_OR_NAME")' in made.text
    assert "    p0: Q: What is 7 times 8?" in made.text
    assert "majority accuracy" in made.text
    assert str(place) not in made.content


def test_an_exported_folder_is_a_model_to_measure(exported: tuple[Path, Result], place: Path) -> None:
    folder, _ = exported
    flags = ("--config", place / "c.toml", "--model", folder, "--population", "none", "--quiet")
    (row,) = rows_of(ttrl("eval", place / "p.jsonl", "--gold", place / "gold.jsonl", *flags).stdout)
    assert (row["system"], row["problems"]) == ("base", 6)


@pytest.mark.parametrize("form", ["plain", "code"])
def test_what_the_mean_mind_writes_greedily_the_export_writes(
    form: str, plain_run: Path, place: Path, tmp_path: Path
) -> None:
    ttrl("export", plain_run, "-o", tmp_path / "out", "--to", form, "--quiet")
    greedy = ("--set", "sampling.temperature=0", "--minds", "1", "--population", "none", "--quiet")
    texts = [
        [row["text"] for row in rows_of(ttrl("sample", place / "p.jsonl", *flags, *greedy).stdout)]
        for flags in (
            ("--run", plain_run),
            ("--config", place / "c.toml", "--model", tmp_path / "out"),
            ("--config", place / "c.toml"),
        )
    ]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_one_mind_and_a_form_can_be_asked_for(plain_run: Path, tmp_path: Path) -> None:
    result = ttrl("export", plain_run / "checkpoints" / "step_0002", "-o", tmp_path / "out", "--mind", 12, "--quiet")
    (row,) = rows_of(result.stdout)
    # The noise behind the final norm does not fold.
    assert (row["form"], row["mind"], row["step"]) == ("adapter", 12, 2)
    assert result.stderr == ""
    (row,) = rows_of(ttrl("export", plain_run, "-o", tmp_path / "code", "--to", "code", "--quiet").stdout)
    assert row["form"] == "code"
    assert "trust_remote_code=True" in (tmp_path / "code" / "README.md").read_text()
    result = ttrl("export", plain_run, "-o", tmp_path / "no", "--to", "plain", "--mind", 12, code=2)
    assert "plain: lm_head, which reads model.norm, has no bias" in result.stderr
    assert not (tmp_path / "no").exists()


def test_a_mind_is_added_to_the_mind_that_the_base_has(plain_run: Path, place: Path, tmp_path: Path) -> None:
    for mind in (1, 2):
        ttrl("export", plain_run, "-o", tmp_path / str(mind), "--to", "code", "--mind", mind, "--quiet")
    one, two = (load_model(str(tmp_path / str(mind)), "cpu", "float32") for mind in (1, 2))
    assert one.fingerprint != two.fingerprint
    again = tmp_path / "again"
    run(place, again, "--model", tmp_path / "1", "--set", "population.options.final_mu=false", "--quiet")
    result = ttrl("eval", place / "p.jsonl", "--run", again, "--model", tmp_path / "2", "--quiet", code=2)
    assert "is not the one of the run" in result.stderr
    # The proof of each form is that both minds are in it; the noise of the first stands behind the final norm too.
    for form, mind in (("code", None), ("code", 3), ("auto", None)):
        flags = () if mind is None else ("--mind", mind)
        found = ttrl("export", again, "-o", tmp_path / f"{form}{mind}", "--to", form, *flags, "--quiet")
        assert rows_of(found.stdout)[0]["form"] == "code"
    result = ttrl("export", again, "-o", tmp_path / "no", "--to", "adapter", code=2)
    assert "adapter: its base would be a folder with a mind" in result.stderr


def test_an_empty_folder_is_filled_where_it_stands(
    plain_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a disk of its own, a link, or the folder that one stands in."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    number = (tmp_path / "disk").stat().st_ino
    monkeypatch.chdir(tmp_path / "disk")
    for out in (tmp_path / "link", Path(".")):
        ttrl("export", plain_run, "-o", out, "--quiet")
        assert {"README.md", "config.json", "ttrl_pop.json"} <= {path.name for path in (tmp_path / "disk").iterdir()}
        assert not [path for path in (tmp_path / "disk").iterdir() if path.name.startswith(".")]
        assert (tmp_path / "disk").stat().st_ino == number
        for path in (tmp_path / "disk").iterdir():
            path.unlink()


def test_after_a_collapse_the_card_has_the_answers_of_the_step_that_gave_them(plain_run: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(plain_run, tmp_path / "run", symlinks=True))
    told = {"verdict": "collapsing", "why": "", "steps": STEPS, "answers_of_step": STEPS - 1}
    identity.record(RunDirectory(out), "verdict.json", json.dumps(told).encode())
    notice = f"has collapsed: this is its newest checkpoint, of step {STEPS}, while its answers and best are of step"
    result = ttrl("export", out, "-o", tmp_path / "newest")
    assert notice in " ".join(result.stderr.split())
    assert "after training" not in (tmp_path / "newest" / "README.md").read_text()
    result = ttrl("export", out / "checkpoints" / f"step_{STEPS - 1:04}", "-o", tmp_path / "sound")
    assert "collapsed" not in result.stderr
    assert "after training" in (tmp_path / "sound" / "README.md").read_text()


def test_what_opens_as_another_model_is_removed(
    plain_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(network: Any, lora: Any, offsets: Any, folder: Path) -> None:
        plain.write(network, lora, {site: offsets[site] for site in [*offsets][1:]}, folder)

    fake = SimpleNamespace(LOADING="", check=plain.check, write=forgetful, reopen=plain.reopen)
    monkeypatch.setitem(exporting.FORMS, "plain", fake)
    result = ttrl("export", plain_run, "-o", tmp_path / "out", code=1)
    assert "the folder is another model than the run, and has been removed: logits at" in result.stderr
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_is_taken_is_left_alone(plain_run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    result = ttrl("export", plain_run, "-o", tmp_path, code=2)
    assert "exists and is not empty; pass another --out" in result.stderr
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_run_of_another_model_is_refused(plain_run: Path, tmp_path: Path) -> None:
    from fakes import save_tiny

    other = save_tiny(tmp_path / "other", seed=1)
    result = ttrl("export", plain_run, "-o", tmp_path / "out", "--model", other, code=2)
    assert "is not the one of the run" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    result = ttrl("export", tmp_path, "-o", tmp_path / "out", code=2)
    assert "neither a run directory nor a checkpoint" in result.stderr


class Hub:
    """What `push` uses of `huggingface_hub.HfApi`."""

    private: ClassVar[bool | None] = None
    """Whether the repository is private; None where there is none."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def repo_info(self, name: str, repo_type: str) -> Any:
        if self.private is None:
            raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))
        return SimpleNamespace(private=self.private)

    def create_repo(self, name: str, **more: Any) -> str:
        self.calls.append(("create", more))
        return f"https://hub/{name}"

    def upload_folder(self, **more: Any) -> None:
        self.calls.append(("upload", more))


def test_an_export_is_uploaded_and_private_unless_asked(exported: tuple[Path, Result]) -> None:
    folder, _ = exported
    for public in (False, True):
        api = Hub()
        assert hub.push(folder, "me/mine", public, api) == "https://hub/me/mine"
        (create, settings), (upload, what) = api.calls
        assert (create, settings["private"], upload) == ("create", not public, "upload")
        assert (what["repo_id"], what["folder_path"]) == ("me/mine", folder)


def test_a_public_repository_is_written_to_only_if_asked(
    exported: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "private", False)
    api = Hub()
    with pytest.raises(UsageError, match="is public; pass --public"):
        hub.push(exported[0], "me/mine", api=api)
    assert api.calls == []
    hub.push(exported[0], "me/mine", public=True, api=api)


def test_a_hub_that_refuses_is_said_in_a_line(exported: tuple[Path, Result]) -> None:
    class Away(Hub):
        def upload_folder(self, **more: Any) -> None:
            raise ConnectionError("no route to host")

    with pytest.raises(TtrlPopError, match="no route to host; log in by hf auth login, and repeat"):
        hub.push(exported[0], "me/mine", api=Away())


def test_what_opens_on_this_machine_alone_is_not_uploaded(plain_run: Path, tmp_path: Path) -> None:
    ttrl("export", plain_run, "-o", tmp_path / "out", "--to", "adapter", "--quiet")
    with pytest.raises(UsageError, match="on this machine alone; export --to plain or --to code"):
        hub.check(tmp_path / "out")
    with pytest.raises(UsageError, match="is an exported adapter, whose biases cannot be merged"):
        locate(str(tmp_path / "out"))
    assert "no export of a run" in ttrl("push", plain_run, "me/mine", code=2).stderr
