"""The command line before any model: help, its page, and every kind of bad input, which must write nothing."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import pytest
from fakes import ROOT, save_tiny
from typer.main import get_command
from typer.testing import CliRunner, Result

from ttrl_pop.cli.app import app
from ttrl_pop.config import Config
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.text import shown

COMMANDS = ("run", "eval", "sample")
"""Commands that take problems."""
GOOD = {"id": "a", "prompt": "Q: 1+1?\nA:"}
HEAVY = {"torch", "transformers", "peft", "rich", "numpy", "ttrl_pop.config", "ttrl_pop.cli.run"}


def ttrl(*arguments: object, stdin: bytes | str | None = None) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin, catch_exceptions=False)


def files_below(*folders: Path) -> dict[str, bytes | None]:
    """Every file and folder with its content."""
    return {
        str(path): path.read_bytes() if path.is_file() else None for folder in folders for path in folder.rglob("*")
    }


# --- help ---


@pytest.mark.parametrize(
    "words", [[], *([c] for c in (*COMMANDS, "vote"))], ids=lambda words: " ".join(words) or "group"
)
def test_help_begins_with_a_line_that_can_be_pasted(words: list[str]) -> None:
    lines = ttrl(*words, "--help").stdout.splitlines()
    assert lines[0].startswith("Usage:")
    assert not lines[1]
    program, name, *arguments = shlex.split(lines[2].partition(">")[0])
    assert program == "ttrl-pop"
    assert not words or [name] == words
    assert not lines[3], "the line must not be wrapped at 80 columns"
    get_command(app).commands[name].make_context(name, arguments)


@pytest.mark.parametrize("command", [*COMMANDS, "vote"])
def test_defaults_in_help_are_the_defaults(command: str) -> None:
    keys = {
        "--model": "model",
        "--population": "population.name",
        "--minds": "population.minds",
        "--samples-per-mind": "population.samples_per_mind",
        "--steps": "steps",
        "--problems-per-step": "problems_per_step",
        "--lr": "learn.lr",
        "--reward": "vote.reward",
        "--extract": "vote.extract",
        "--grader": "vote.grader",
        "--weight": "vote.weight",
        "--backend": "backend",
        "--seed": "seed",
    }
    of_vote = {"--reward", "--extract", "--grader", "--weight"}
    required = {"run": {*keys} - {"--grader", "--weight"}, "vote": of_vote}.get(command, set())
    text = " ".join(ttrl(command, "--help").stdout.split())
    for flag, key in keys.items():
        found = re.search(rf"{flag} [A-Z]+ [^[]*\[default: ([^]]+)]", text)
        if found is not None or flag in required:
            assert found is not None, flag
            value = reduce(getattr, key.split("."), Config())
            assert type(value)(found[1]) == value, flag


def test_the_reference_page_is_what_the_help_says() -> None:
    script = ROOT / "dev" / "cli_reference.py"
    made = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert made.stdout == (ROOT / "docs" / "CLI.md").read_text(), "python dev/cli_reference.py > docs/CLI.md"


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['ttrl-pop', *sys.argv[1:]]\n"
        "from ttrl_pop.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    times = []
    for arguments in (["--help"], ["run", "--help"], ["vote", "--help"], ["--version"]):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
        assert done.stdout
        assert not HEAVY & set(done.stderr.split())
    assert min(times) < 1.5


# --- bad input ---


def lines(*rows: object) -> bytes:
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


def numbered(count: int) -> list[object]:
    return [{"id": str(i), "prompt": "Q"} for i in range(count)]


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "p.jsonl: empty"),
    "invalid JSON": (lines(*numbered(16), b'{"id": 17,\n', *numbered(0)), "p.jsonl:17: invalid JSON"),
    "no prompt": (lines(GOOD, {"id": "b", "text": "Q"}), "p.jsonl:2: no prompt field (found: id, text)"),
    "ids twice": (lines(GOOD, {**GOOD, "prompt": "other"}), "p.jsonl:2: id 'a' stands on line 1 already"),
    "not UTF-8": (lines(GOOD, b'{"prompt": "\xff"}\n'), "p.jsonl:2: not valid UTF-8"),
    "no object": (lines([1]), "must be a JSON object"),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a good problem file and what else a command may be pointed to."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.jsonl").write_bytes(lines(GOOD, {**GOOD, "id": "b"}))
    (tmp_path / "gold.jsonl").write_bytes(lines({"id": "a", "answer": "2"}))
    (tmp_path / "other.jsonl").write_bytes(lines({"id": "a", "answer": "2"}, {"id": "zz", "answer": "2"}))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    (tmp_path / "wrong.toml").write_text("[learn]\nlearning_rate = 1.0\n")
    (tmp_path / "broken.toml").write_text("steps = \n")
    return tmp_path


def refused(place: Path, *arguments: object, stdin: bytes | None = None) -> str:
    """The one line of a command that is refused with code 2 and leaves the folder as it was."""
    before = files_below(place)
    result = ttrl(*arguments, stdin=stdin)
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    assert files_below(place) == before
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("ttrl-pop: ")
    return result.stderr


# A model that is not there would be the error if anything were looked at after it.
NO_MODEL = ("--model", "/nowhere/model")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_problem_file_is_refused_before_the_model_is_loaded(place: Path, command: str, kind: str) -> None:
    content, message = BAD_FILES[kind]
    (place / "p.jsonl").write_bytes(content)
    assert message in refused(place, command, "p.jsonl", *NO_MODEL)
    assert message.replace("p.jsonl", "<stdin>") in refused(place, command, "-", *NO_MODEL, stdin=content)


BAD_ARGUMENTS: dict[str, tuple[str, str]] = {
    "no problems": ("run", "run needs PROBLEMS"),
    "no such file": ("run nothing.jsonl", "nothing.jsonl: no such file"),
    "a directory": ("run full", "full: is a directory"),
    "out below a file": ("run good.jsonl --out good.jsonl/run", "good.jsonl is not a directory"),
    "out is a file": ("run good.jsonl --out gold.jsonl", "gold.jsonl is not a directory"),
    "out where nothing can be": ("run good.jsonl --out /proc/nope/run", "--out /proc/nope/run: cannot be written to"),
    "out is not empty": ("run good.jsonl --out full", "--out full: exists and is not empty; pass another --out"),
    "a name too long": (f"run good.jsonl --out {'x' * 300}", "cannot be written to"),
    "gold of an unknown problem": ("run good.jsonl --gold other.jsonl", "other.jsonl:2: no problem has the id 'zz'"),
    "no gold file": ("eval good.jsonl --gold nothing.jsonl", "nothing.jsonl: no such file"),
    "unknown key in a file": ("run good.jsonl --config wrong.toml", "wrong.toml: unknown key 'learn.learning_rate'"),
    "broken TOML": ("run good.jsonl --config broken.toml", "broken.toml: not valid TOML"),
    "no config file": ("sample good.jsonl --config nothing.toml", "nothing.toml: no such file"),
    "unknown key": ("run good.jsonl --set learn.los=grpo", "unknown key 'learn.los'; did you mean 'learn.loss'?"),
    "no assignment": ("run good.jsonl --set a", "--set takes KEY=VALUE (as in learn.loss=grpo), got 'a'"),
    "not a number": ("run good.jsonl --set learn.lr=abc", "learn.lr: Input should be a number"),
    "below a value": ("run good.jsonl --set model.x=1", "'model' is a value"),
    "out of range": ("eval good.jsonl --minds 0", "population.minds: Input should be greater than or equal to 1"),
    "group of one": ("run good.jsonl --minds 1", "a group needs at least 2 rollouts"),
    "greedy": ("run good.jsonl --set sampling.temperature=0", "temperature must be above 0 in training"),
    "nucleus": ("run good.jsonl --set sampling.top_p=0.9", "top_p must be 1 in training"),
    "no such population": ("run good.jsonl --population norm-nose", "did you mean 'norm-noise'?"),
    "no such backend": ("sample good.jsonl --backend hff", "did you mean 'hf'?"),
    "no such reward": ("run good.jsonl --reward majorty", "did you mean 'majority'?"),
    "no such module": ("run good.jsonl --reward no.such:Thing", "cannot be imported"),
    "gold reward without": ("run good.jsonl --reward gold", "2 of 2 have none (first: 'a')"),
    "gold reward with some": ("run good.jsonl --reward gold --gold gold.jsonl", "1 of 2 have none (first: 'b')"),
    "gold reward by path": (
        "run good.jsonl --reward ttrl_pop.vote.rewards.gold:GoldReward",
        "reward ttrl_pop.vote.rewards.gold:GoldReward needs a gold answer for every problem",
    ),
    "unknown option": ("run good.jsonl --set population.options.sgma=1", "did you mean 'sigma'?"),
    "resume of no run": ("run --resume full", "--resume full: not a run directory"),
    "resume of nothing": ("run --resume nothing", "--resume nothing: no such folder; pass the directory of a run"),
    "resume elsewhere": ("run --resume full --out new", "leave --out out"),
    "run is no run": ("eval good.jsonl --run full", "full: neither a run directory nor a checkpoint"),
    "run is not there": ("sample good.jsonl --run nothing", "nothing: no such folder; pass a run directory"),
    "compare what": ("eval good.jsonl --compare", "pass --run RUN"),
    "standard input twice": ("run - --gold -", "standard input can be one of PROBLEMS and --gold; name files"),
    "standard input for a holdout, too": (
        "run - --holdout -",
        "standard input can be one of PROBLEMS, --gold and --holdout",
    ),
    "a holdout of all": ("run good.jsonl --holdout 0.99", "--holdout 0.99 keeps 2 of 2 problems out"),
    "a holdout in percent": (
        "run good.jsonl --holdout 20%",
        "takes a share as a number, got '20%'; pass --holdout 0.2",
    ),
    "standard input twice to eval": ("eval - --gold -", "standard input can be one of PROBLEMS and --gold"),
    "no model": ("run good.jsonl", "model '/nowhere/model' is neither a folder"),
}


@pytest.mark.parametrize("kind", BAD_ARGUMENTS)
def test_bad_arguments_are_refused_before_the_model_is_loaded(place: Path, kind: str) -> None:
    words, message = BAD_ARGUMENTS[kind]
    assert message in refused(place, *words.split(), *NO_MODEL)


@pytest.mark.parametrize("command", [[], ["run"], ["study"], ["study", "controls"]])
def test_help_has_a_short_name(command: list[str]) -> None:
    assert ttrl(*command, "-h").stdout == ttrl(*command, "--help").stdout != ""


@pytest.mark.parametrize(
    ("words", "message"),
    [("run good.jsonl --minds ten", "a whole number, got 'ten'"), ("run good.jsonl --lr x", "a number, got 'x'")],
)
def test_a_flag_that_is_no_number_says_what_came(place: Path, words: str, message: str) -> None:
    assert message in ttrl(*words.split()).stderr


@pytest.mark.parametrize(
    "words", ["walk", "run --stepz 3 good.jsonl", "run --steps many good.jsonl", "eval", "run a.jsonl b.jsonl"]
)
def test_usage_errors_of_the_parser_have_code_2_too(place: Path, words: str) -> None:
    before = files_below(place)
    result = ttrl(*words.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error: " in result.stderr
    assert files_below(place) == before


def without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def without_tokenizer(model: Path) -> None:
    for file in model.glob("token*"):
        file.unlink()


def without_config(model: Path) -> None:
    (model / "config.json").unlink()


def with_broken_config(model: Path) -> None:
    (model / "config.json").write_text("{")


def with_cut_weights(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


@pytest.mark.parametrize(
    "damage", [without_weights, without_tokenizer, without_config, with_broken_config, with_cut_weights]
)
def test_a_model_folder_that_lacks_something_is_refused(place: Path, damage: Callable[[Path], None]) -> None:
    damage(save_tiny(place / "damaged"))
    assert "damaged" in refused(place, "run", "good.jsonl", "--model", "damaged")


def test_a_prompt_longer_than_the_context_is_refused(place: Path, tiny: Path) -> None:
    (place / "p.jsonl").write_bytes(lines(GOOD, {"id": "long", "prompt": "Q" * 300}))
    for command in COMMANDS:
        error = refused(place, command, "p.jsonl", "--raw", "--model", tiny, "--set", "sampling.max_new_tokens=4")
        assert "problem 'long': prompt of 300 tokens and 4 new ones do not fit the model's context of 256" in error


def test_stop_strings_may_hold_line_ends(place: Path, tiny: Path) -> None:
    arguments = ["good.jsonl", "--model", tiny, "--minds", 2, "--set", "population.options.sigma=0.1"]
    result = ttrl("sample", *arguments, "--set", "sampling.max_new_tokens=3", "--set", 'sampling.stop=["\\n", "7"]')
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 4


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31mred", "\u202eabc", "\ud800", "nul\x00"])
def test_an_error_is_one_printable_line_whatever_it_quotes(place: Path, text: str) -> None:
    assert shown(text, limit=None).isprintable()
    (place / "p.jsonl").write_text(json.dumps({"id": text, "prompt": 3}))
    assert refused(place, "run", "p.jsonl", *NO_MODEL).rstrip("\n").isprintable()


def test_an_empty_folder_may_be_the_run_directory(place: Path, tiny: Path) -> None:
    (place / "empty").mkdir()
    result = ttrl(
        *("run", "good.jsonl", "--model", tiny, "--out", "empty", "--steps", 1, "--minds", 2, "--quiet"),
        *("--set", "population.options.sigma=0.1", "--set", "sampling.max_new_tokens=2"),
    )
    assert (result.exit_code, result.stderr) == (0, "")
    assert RunDirectory(Path("empty")).identity.exists()


def test_a_run_directory_that_cannot_be_made_leaves_nothing(place: Path, tiny: Path) -> None:
    os.symlink("/nowhere/at/all", place / "dangling")
    assert "dangling is not a directory" in refused(place, "run", "good.jsonl", "--model", tiny, "--out", "dangling")
