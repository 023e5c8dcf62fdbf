"""Code that a run's own files name is imported where the user has said so, and nowhere else; nor are servers asked."""

import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cli.commands import ttrl, write_lines
from fakes import PROBLEMS, save_tiny

from ttrl_pop.config_file import load_config
from ttrl_pop.plugins import foreign, places
from ttrl_pop.store import identity
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.store.identity import CONFIG

MODULE = """
from pathlib import Path
from ttrl_pop.vote.graders.exact import ExactGrader
from ttrl_pop.vote.rewards.consensus import majority
from ttrl_pop.population.norm_noise import NormNoise
from ttrl_pop.sample.hf.backend import HfBackend

Path(__file__).with_name("ran").touch()

class Mine(ExactGrader): ...
class Noise(NormNoise): ...
class Engine(HfBackend): ...
def first(text, finish_reason): return text[:1]
"""
SETTINGS = {
    "grader": ("--set", "vote.grader=strange:Mine"),
    "reward": ("--reward", "0.5*strange:majority+majority"),
    "extractor": ("--extract", "strange:first"),
    "population": ("--population", "strange:Noise"),
    "backend": ("--backend", "strange:Engine"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with each kind of plug-in, as its maker has it, and the module that it names."""
    folder = tmp_path_factory.mktemp("runs")
    save_tiny(folder / "tiny")
    write_lines(folder / "p.jsonl", [{"id": p.id, "prompt": p.prompt} for p in PROBLEMS[:1]])
    (folder / "strange.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.delitem(sys.modules, "strange", raising=False)
        for kind, setting in SETTINGS.items():
            arguments = ("--minds", 2, "--steps", 1, "--set", "sampling.max_new_tokens=2", "--quiet")
            more = ("--set", "population.options.sigma=0.3", "--set", "vote.grader=exact", *setting)
            ttrl("run", folder / "p.jsonl", "--model", folder / "tiny", "--out", folder / kind, *arguments, *more)
    return folder


@pytest.fixture
def strange(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of these runs somewhere else; `ran` beside the module tells that it was imported."""
    monkeypatch.syspath_prepend(runs)
    monkeypatch.delitem(sys.modules, "strange", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (runs / "ran").unlink(missing_ok=True)
    for kind in SETTINGS:
        shutil.copytree(runs / kind, tmp_path / kind, symlinks=True)
    return tmp_path


def commands(runs: Path, out: Path) -> dict[str, tuple[object, ...]]:
    return {
        "resume": ("run", "--resume", out, "--steps", 2, "--quiet"),
        "eval": ("eval", runs / "p.jsonl", "--run", out, "--quiet"),
        "sample": ("sample", runs / "p.jsonl", "--run", out, "--quiet"),
        "problems": ("problems", out),
    }


@pytest.mark.parametrize("kind", ["grader", *(pytest.param(kind, marks=pytest.mark.slow) for kind in [*SETTINGS][1:])])
@pytest.mark.parametrize("name", ["resume", "eval", "sample", "problems"])
def test_the_run_of_a_stranger_imports_nothing_until_it_is_trusted(
    runs: Path, strange: Path, kind: str, name: str
) -> None:
    command = commands(runs, strange / kind)[name]
    if (name, kind) == ("sample", "reward") or (name == "problems" and kind != "grader"):
        ttrl(*command)
        assert not (runs / "ran").exists()
        return
    refused = ttrl(*command, code=2)
    assert refused.stderr.startswith(f"ttrl-pop: {strange / kind / 'config.toml'} names code that is not part of this ")
    assert "strange:" in refused.stderr
    assert "Pass --trust" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (runs / "ran").exists()
    ttrl(*command, "--trust")
    assert (runs / "ran").exists()
    ttrl(*command)


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str | None]]]:
    """The address of a server that is none of vLLM's, and the keys that it was sent."""
    heard: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers["Authorization"])
            self.send_error(404)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", heard
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["resume", "eval", "sample"])
def test_the_run_of_a_stranger_sends_no_key_and_makes_no_folder_until_it_is_trusted(
    runs: Path, strange: Path, listener: tuple[str, list[str | None]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (url, heard), out, folder = listener, RunDirectory(strange / "grader"), strange / "made"
    monkeypatch.setenv("VLLM_API_KEY", "SECRET")
    changed = out.config.read_text().replace("strange:Mine", "exact").replace('"hf"', '"vllm-server"')
    places = f'[backend_options]\nurls = ["{url}"]\nfolder = "{folder}"\n'
    changed = changed.replace("[backend_options]\n", places)
    identity.record(out, CONFIG, changed.encode())
    command = commands(runs, out.path)[name]
    refused = ttrl(*command, code=2).stderr
    assert f"names addresses or folders: backend_options.urls.0 = {url}; backend_options.folder = {folder}." in refused
    assert "Pass --trust" in refused
    assert refused.count("\n") == 1
    assert heard == []
    assert not folder.exists()
    assert "Pass --trust" not in ttrl(*command, "--trust", code=2).stderr
    assert heard == ["Bearer SECRET"]
    ttrl("problems", out.path)


def test_who_made_a_run_goes_on_with_it_as_ever(runs: Path) -> None:
    for command in commands(runs, runs / "grader").values():
        ttrl(*command)


def test_trust_in_one_name_of_a_run_is_none_in_another(runs: Path, strange: Path) -> None:
    out = RunDirectory(strange / "grader")
    ttrl("problems", out.path, "--trust")
    changed = out.config.read_text().replace("strange:Mine", "strange:Other")
    identity.record(out, CONFIG, changed.encode())
    assert "vote.grader = strange:Other" in ttrl("problems", out.path, code=2).stderr


def test_a_name_that_is_typed_is_trusted_for_this_command(runs: Path, strange: Path) -> None:
    typed = ("eval", runs / "p.jsonl", "--run", strange / "grader", "--set", "vote.grader=strange:Mine")
    ttrl(*typed)
    ttrl("eval", runs / "p.jsonl", "--run", strange / "grader", code=2)
    ttrl("eval", runs / "p.jsonl", "--run", strange / "grader", "--set", "vote.grader=exact")


@pytest.mark.parametrize("content", [b"", b"null\n", b"\xff\n", b'{"run": 1, "code": 2}\n', b"[" * 10**5])
def test_a_damaged_memory_trusts_nobody_and_stops_nobody(runs: Path, strange: Path, content: bytes) -> None:
    memory = strange / "state" / "ttrl-pop" / "trusted"
    memory.parent.mkdir(parents=True)
    memory.write_bytes(content)
    ttrl("problems", strange / "grader", code=2)
    ttrl("problems", strange / "grader", "--trust")


def test_a_state_folder_that_takes_no_files_is_no_obstacle(
    runs: Path, strange: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (strange / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(strange / "file"))
    ttrl("problems", strange / "grader", "--trust")
    ttrl("problems", strange / "grader", code=2)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, {}),
        ({"vote.extract": "regex:(a):b"}, {}),
        ({"vote.reward": "majority+0.2*format"}, {}),
        ({"vote.reward": "short"}, {}),
        ({"backend": "auto"}, {}),
        ({"vote.reward": "gold+0.5*a.b:c + d:e"}, {"vote.reward": "a.b:c and d:e"}),
        ({"vote.grader": "ttrl_pop.vote.graders.exact:os.system"}, None),
        ({"population.options": {"deep": [{"worker": "a.b:c"}]}}, {"population.options.deep.0.worker": "a.b:c"}),
        ({"backend_options": {"engine": {"worker_extension_cls": "a.b"}}}, None),
        (
            {"backend_options": {"engine": {"trust_remote_code": True}}},
            {"backend_options.engine.trust_remote_code": "True"},
        ),
        ({"backend_options": {"engine": {}, "slots": 3}}, {}),
    ],
)
def test_what_would_be_imported_is_seen(settings: dict[str, object], found: dict[str, str] | None) -> None:
    seen = foreign(load_config(None, settings))
    assert seen == found if found is not None else len(seen) == 1


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, {}),
        (
            {"backend_options": {"urls": ["http://host:1"], "folder": "here", "timeout": 3.0}},
            {"backend_options.urls.0": "http://host:1", "backend_options.folder": "here"},
        ),
        ({"backend_options": {"minds": "serial", "deep": {"home": "~/x"}}}, {"backend_options.deep.home": "~/x"}),
        ({"backend_options": {"cache": "/tmp/x"}}, {"backend_options.cache": "/tmp/x"}),
        ({"population.options": {"fitted": "runs/fit", "sigma": "auto"}}, {}),
        ({"population.options": {"judge": "ws://host"}}, {"population.options.judge": "ws://host"}),
    ],
)
def test_addresses_and_folders_are_seen(settings: dict[str, object], found: dict[str, str]) -> None:
    assert places(load_config(None, settings)) == found
