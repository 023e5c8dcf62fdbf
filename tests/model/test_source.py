"""Names of models: what each leads to, and what is refused before anything is loaded."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import save_tiny
from huggingface_hub.errors import RepositoryNotFoundError

from ttrl_pop.errors import UsageError
from ttrl_pop.model import gguf
from ttrl_pop.model.gguf import cache_root
from ttrl_pop.model.source import from_hub, lasting, locate


def adapter_in(folder: Path, **settings: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def test_a_path_lasts_wherever_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "model").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "link.gguf").symlink_to("home/m.gguf")
    here = tmp_path.resolve()
    assert lasting("model") == lasting("./model/") == str(here / "model")
    assert lasting("model/..") == lasting(".") == str(here)
    assert lasting("~/m.gguf") == str(here / "home" / "m.gguf")
    assert lasting("link.gguf") == str(here / "link.gguf"), "what a hub's cache links to has no suffix"
    assert [lasting(name) for name in ("smollm2", "org/name", "gpt2", "~nobody/x")] == [
        *("smollm2", "org/name", "gpt2", "~nobody/x")
    ]


@pytest.mark.parametrize("name", ["my modle", "./modle", "/nowhere/modle", "~/modle", "a/b/c", "größe", "modle/"])
def test_a_name_that_can_be_no_hub_id_is_refused_without_asking(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ttrl_pop.model.source.from_hub", lambda name: "asked")
    with pytest.raises(UsageError, match="neither a folder"):
        locate(name)


def not_there(name: str) -> object:
    raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))


def unreachable(name: str) -> object:
    raise ConnectionError("Name or service not known")


def test_a_hub_id_is_asked_for_once_and_a_mistyped_folder_is_said_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert from_hub("org/name", ask=lambda name: None) == "org/name"
    with pytest.raises(UsageError, match=r"'mymodle': there is no such folder; as a hub id: the hub has no such model"):
        from_hub("mymodle", ask=not_there)
    with pytest.raises(UsageError, match=r"'mymodle': there is no such folder; .* cannot be reached \(Name or service"):
        from_hub("mymodle", ask=unreachable)


def test_without_the_hub_its_cache_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--org--name"
    save_tiny(kept / "snapshots" / "abc")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    for ask in (unreachable, not_there):
        assert from_hub("org/name", ask) == str(kept / "snapshots" / "abc")


def test_an_adapter_is_never_taken_for_a_model_nor_lost_beside_one(tmp_path: Path) -> None:
    beside = save_tiny(tmp_path / "beside")
    adapter_in(beside)
    with pytest.raises(UsageError, match=r"holds an adapter beside the model .* merge it"):
        locate(str(beside))
    alone = adapter_in(tmp_path / "alone", base_model_name_or_path="org/base")
    with pytest.raises(UsageError, match=r"is an adapter of 'org/base', not a model; merge it .*--run RUN"):
        locate(str(alone))
    for content in ("{", "[]", '{"base_model_name_or_path": 3}'):
        (alone / "adapter_config.json").write_text(content)
        with pytest.raises(UsageError, match="is an adapter, not a model"):
            locate(str(alone))


@pytest.mark.parametrize("part", ["", "checkpoints/step_0002", "checkpoints/step_0002/adapter", "best/adapter"])
def test_what_is_of_a_run_is_passed_as_a_run(part: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "step_0002"
    checkpoint.mkdir(parents=True)
    adapter_in(checkpoint / "adapter")
    (run / "identity.json").write_text("{}")
    (run / "best").symlink_to(checkpoint)
    with pytest.raises(UsageError, match=f"belongs to the run .*; pass --run {run / part} in place of --model"):
        locate(str(run / part))


def test_a_pointer_of_git_lfs_is_no_weights(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UsageError, match=r"model\.safetensors is a pointer of Git LFS"):
        locate(str(folder))


@pytest.mark.parametrize("name", ["m.gguf", "M.GGUF", "m.GgUf", "sha256-0123", "my model.gguf"])
def test_a_gguf_file_is_known_by_its_content(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttrl_pop.model.source.converted", lambda path, stage: path / "converted")
    (tmp_path / name).write_bytes(b"GGUF" + b"\0" * 8)
    assert locate(str(tmp_path / name)) == str(tmp_path / name / "converted")
    (tmp_path / name).write_bytes(b"text")
    with pytest.raises(UsageError, match="is a file, but none in GGUF"):
        locate(str(tmp_path / name))


def test_a_conversion_is_told_of_as_it_begins_and_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTRL_POP_CACHE", str(tmp_path / "cache"))
    told: list[str] = []

    def convert(file: Path, work: Path) -> None:
        told.append("at work")
        (work / "config.json").write_text("{}")

    monkeypatch.setattr(gguf, "_convert", convert)
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + b"\0" * 8)
    first, second = (locate(str(tmp_path / "m.gguf"), told.append) for _ in range(2))
    assert first == second
    assert told == ["converting m.gguf, once", "at work"]


def test_the_home_folder_is_meant_in_the_names_of_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TTRL_POP_CACHE", "~/own")
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("TTRL_POP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/cache")
    assert cache_root() == tmp_path / "cache" / "ttrl-pop"
    monkeypatch.setenv("TTRL_POP_CACHE", "~nobody-of-this-name/own")
    with pytest.raises(UsageError, match="no such home folder; set TTRL_POP_CACHE"):
        cache_root()


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    monkeypatch.setenv("TTRL_POP_CACHE", "/proc/nope")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"/proc/nope/models: cannot be written to .*; set TTRL_POP_CACHE"):
        locate(str(tmp_path / "m.gguf"))


def test_a_folder_that_was_moved_says_how_to_name_its_new_place(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    name = lasting(str(folder))
    shutil.move(folder, tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="of one that has moved, pass the new place with --model"):
        locate(name)
