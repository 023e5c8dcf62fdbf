"""The door for plug-ins: short names, entry points, paths, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest

from ttrl_pop import plugins
from ttrl_pop.errors import UsageError
from ttrl_pop.plugins import BUILT_IN, load
from ttrl_pop.vote.graders.exact import ExactGrader
from ttrl_pop.vote.rewards.consensus import majority

MODULE = """
from ttrl_pop import Backend, Grader, Population, Section

class Whole(Grader):
    def key(self, answer):
        return answer

class Keyless(Grader):
    pass

class Asking(Whole):
    def __init__(self, seconds):
        self.seconds = seconds

class Reasoned(Whole):
    def equal(self, a, b, why):
        return False

class Valued(Whole):
    forget = None

class Still(Whole):
    @staticmethod
    def key(answer):
        return answer

    def equal(self, *answers):
        return False

class Lone(Backend):
    def rollouts(self, requests):
        yield from ()

class Keyed(Population):
    class Options(Section): ...
    def attach(self): ...
    def embody(self, *_): ...
    def kl_to_prior(self): ...
    def restart(self): ...

class Unmade(Backend):
    def __init__(self, policy, sampling, options):
        self.said = options
    def rollouts(self, requests, weights): ...

class Early(Keyed):
    def __init__(self, options):
        from torch import nn
        self.inner = nn.Linear(1, 1)
        super().__init__(options)
    def attach(self, network): ...

class Late(Early):
    def __init__(self, options):
        self.number = 3

class NoOptions(Population):
    def attach(self, network): ...
    def embody(self, *_): ...
    def kl_to_prior(self): ...
    def restart(self): ...

class WrongOptions(Backend):
    Options = dict
    def rollouts(self, requests): ...

def reward(ballot):
    return ballot.shares

def two(text, reason):
    return text

class Holder:
    @staticmethod
    def inside(text, finish_reason):
        return text

number = 3
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path, with the module `mine` in it."""
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def offer(folder: Path, package: str, entries: str) -> None:
    """What `pip install` leaves of a package that offers entry points."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entries)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in BUILT_IN for name in BUILT_IN[kind]])
def test_every_built_in_comes_through_the_door(kind: str, name: str) -> None:
    assert load(kind, name) is not None


def test_a_path_names_a_plug_in_of_ones_own(installed: Path) -> None:
    assert load("grader", "mine:Whole").__name__ == "Whole"
    assert load("reward", "mine:reward").__name__ == "reward"
    assert load("extractor", "mine:Holder.inside")("5", "stop") == "5"


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (
            "population",
            "json:loads",
            "population must be a class derived from ttrl_pop.Population, got 'json:loads', a f",
        ),
        ("population", "json:JSONDecoder", "derived from ttrl_pop.Population, got 'json:JSONDecoder', the class JSOND"),
        (
            "population",
            "mine:NoOptions",
            "mine:NoOptions': NoOptions.Options must be a class derived from ttrl_pop.Sec",
        ),
        (
            "backend",
            "json:loads",
            "backend must be a class derived from ttrl_pop.Backend, got 'json:loads', a function",
        ),
        ("backend", "mine:WrongOptions", "WrongOptions.Options must be a class derived from ttrl_pop.Section"),
        ("grader", "json:loads", "grader must be a class derived from ttrl_pop.Grader, got 'json:loads', a function"),
        ("grader", "mine:Keyless", "grader 'mine:Keyless': Keyless must define key, as ttrl_pop.Grader asks"),
        ("reward", "mine:number", "reward must be callable, got 'mine:number', an int"),
        ("extractor", "mine:number", "extractor must be callable, got 'mine:number', an int"),
        ("reward", "os:path", "reward must be callable, got 'os:path', a module"),
        (
            "reward",
            "os:system",
            "must be made for it, to take (ballot), got 'os:system', a builtin_function_or_method of",
        ),
        ("reward", "json:loads", "must be made for it, to take (ballot), got 'json:loads', a function of Python's own"),
        ("reward", "builtins:dict", "to take (ballot), got 'builtins:dict', the class dict of Python's own"),
        ("reward", "mine:two", "reward must take (ballot), got 'mine:two', a function of (text, reason)"),
        (
            "reward",
            "ttrl_pop:Grader",
            "reward must be a function or a class with instances, got 'ttrl_pop:Grader'",
        ),
        ("extractor", "os:system", "to take (text, finish_reason), got 'os:system', a builtin_function_or_method of"),
        (
            "extractor",
            "mine:Holder",
            "extractor must be a function of (text, finish_reason), got 'mine:Holder'",
        ),
        ("extractor", "mine:reward", "must take (text, finish_reason), got 'mine:reward', a function of (ballot)"),
        ("grader", "os:path", "grader must be a class derived from ttrl_pop.Grader, got 'os:path', a module"),
        ("grader", "ttrl_pop:Grader", "Grader must define key, as ttrl_pop.Grader asks"),
        (
            "grader",
            "ttrl_pop:Backend",
            "must be a class derived from ttrl_pop.Grader, got 'ttrl_pop:Backend'",
        ),
        ("grader", "mine:Asking", "grader must take (), got 'mine:Asking', the class Asking of (seconds)"),
        (
            "grader",
            "mine:Reasoned",
            "'mine:Reasoned': Reasoned.equal must be a method that takes (a, b), got (self, a, b, why)",
        ),
        ("grader", "mine:Valued", "Valued.forget must be a method that takes (), got a NoneType"),
        ("backend", "mine:Lone", "Lone.rollouts must be a method that takes (requests, weights), got (self, requests)"),
        ("population", "mine:Keyed", "Keyed.attach must be a method that takes (network), got (self)"),
        ("backend", "ttrl_pop:Backend", "Backend must define rollouts, as ttrl_pop.Backend asks"),
        ("backend", "os:system", "must be a class derived from ttrl_pop.Backend, got 'os:system', a builtin_function"),
        ("population", "ttrl_pop:Population", "Population must define attach, embody, kl_to_prior, restart, as"),
        ("population", "os:path", "must be a class derived from ttrl_pop.Population, got 'os:path', a module"),
    ],
)
def test_a_wrong_kind_is_refused(installed: Path, kind: str, name: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        load(kind, name)
    assert message in str(error.value)


@pytest.mark.parametrize("kind", BUILT_IN)
def test_a_short_name_is_found_by_entry_point(installed: Path, kind: str) -> None:
    found = {"population": "ttrl_pop.population.base:NoPopulation", "backend": "ttrl_pop.sample.hf.backend:HfBackend"}
    path = found.get(kind, {"grader": "mine:Whole", "reward": "mine:reward"}.get(kind, "mine:Holder.inside"))
    offer(installed, "mine", f"[ttrl_pop.{kind}s]\nshort = {path} [extra]\n\n[ttrl_pop.others]\nzzz = mine:none\n")
    assert load(kind, "short") is load(kind, path)
    with pytest.raises(
        UsageError, match=rf"{kind} must be one of .*, short or package.module:Name, got 'zzz'; no installed"
    ):
        load(kind, "zzz")


def test_methods_that_take_what_they_are_called_with_pass(installed: Path) -> None:
    assert load("grader", "mine:Still")().same("5", "5")


@pytest.mark.parametrize(
    ("kind", "name", "given"), [("backend", "Unmade", 3), ("population", "Early", 1), ("population", "Late", 1)]
)
def test_a_class_that_leaves_out_what_its_base_does_is_said(installed: Path, kind: str, name: str, given: int) -> None:
    found = load(kind, f"mine:{name}")
    with pytest.raises(UsageError, match=rf"^{kind} {name}: __init__ must call super\(\).__init__\(.*options\) before"):
        plugins.made(kind, found, *range(given))


def test_names_that_cannot_be_asked_for_are_not_listed(installed: Path) -> None:
    entries = "".join(f"{name} = mine:reward\n" for name in ("short", "a+b", "2*a", "majority"))
    offer(installed, "mine", f"[ttrl_pop.rewards]\n{entries}")
    with pytest.raises(UsageError) as error:
        load("reward", "zzz")
    listed = str(error.value).partition("must be one of ")[2].partition(" or package")[0].split(", ")
    assert listed == [*BUILT_IN["reward"], "short"]


def test_entry_points_are_not_read_for_a_name_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "entry_points", None)
    assert load("reward", "majority") is majority
    assert load("reward", "ttrl_pop.vote.rewards.consensus:majority") is majority


def test_a_built_in_name_cannot_be_taken_over(installed: Path) -> None:
    offer(installed, "mine", "[ttrl_pop.graders]\nexact = mine:Whole\n")
    assert load("grader", "exact") is ExactGrader


def test_a_name_that_two_packages_offer_is_refused_with_both(installed: Path) -> None:
    offer(installed, "mine", "[ttrl_pop.rewards]\nshort = mine:reward\n")
    offer(installed, "yours", "[ttrl_pop.rewards]\nshort = yours:reward\n")
    with pytest.raises(UsageError) as error:
        load("reward", "short")
    assert str(error.value) == (
        "reward 'short' is offered by the packages mine and yours; name the one that is meant: mine:reward or "
        "yours:reward"
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("mine", "grader 'short': package mine must offer package.module:Name, got 'mine'"),
        ("nowhere:Whole", "grader 'short' cannot be imported (No module named 'nowhere')"),
        ("mine:reward", "grader must be a class derived from ttrl_pop.Grader, got 'short', a function"),
    ],
)
def test_an_entry_point_that_is_wrong_is_refused(installed: Path, entry: str, message: str) -> None:
    offer(installed, "mine", f"[ttrl_pop.graders]\nshort = {entry}\n")
    with pytest.raises(UsageError) as error:
        load("grader", "short")
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("reward", "majorty", "got 'majorty'; did you mean 'majority'?"),
        ("population", "norm_noise", "got 'norm_noise'; did you mean 'norm-noise'?"),
        ("reward", "shrt", "got 'shrt'; did you mean 'short'?"),
        ("extractor", "first-numbr", "extractor must be one of auto, "),
        ("extractor", "first-numbr", " or package.module:Name, got 'first-numbr'; did you mean 'first-number'?"),
        (
            "backend",
            "zzz",
            "backend must be one of hf, vllm, vllm-server or package.module:Name, got 'zzz'; no installed package",
        ),
        ("grader", "mine:", "grader must be one of math, exact, choice or package.module:Name, got 'mine:'"),
        ("grader", ":Whole", "got ':Whole'"),
        ("grader", ".mine:Whole", "got '.mine:Whole'"),
        ("grader", "mine:Whol", "grader 'mine:Whol': module mine has no 'Whol'; did you mean 'Whole'?"),
        ("grader", "nowhere:Whole", "cannot be imported (No module named 'nowhere'); is its folder on PYTHONPATH?"),
    ],
)
def test_an_unknown_name_offers_the_nearest(installed: Path, kind: str, name: str, message: str) -> None:
    offer(installed, "mine", "[ttrl_pop.rewards]\nshort = mine:reward\n")
    with pytest.raises(UsageError) as error:
        load(kind, name)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(:\n", "SyntaxError: invalid syntax (broken.py, line 1)"),
        ("x = 1\ny = z\n", "NameError: name 'z' is not defined; broken.py, line 2"),
        ("raise SystemExit(0)\n", "SystemExit: 0; broken.py, line 1"),
        ("1 / 0\n", "ZeroDivisionError: division by zero; broken.py, line 1"),
        ("\nimport not_there\n", "No module named 'not_there'; broken.py, line 2"),
        ("from json import nothing\n", "ImportError: cannot import name 'nothing' from 'json'"),
    ],
)
def test_a_plug_in_that_cannot_be_imported_is_one_line(installed: Path, source: str, message: str) -> None:
    (installed / "broken.py").write_text(source)
    with pytest.raises(UsageError) as error:
        load("reward", "broken:f")
    assert str(error.value).startswith(f"reward 'broken:f' cannot be imported ({message}")
    assert "PYTHONPATH" not in str(error.value)


@pytest.mark.parametrize("flag", ["--population", "--backend"])
def test_the_command_line_says_so_in_one_line(tmp_path: Path, flag: str) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "1+1="}\n')
    command = [sys.executable, "-m", "ttrl_pop", "run", "p.jsonl", flag, "json:loads"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"ttrl-pop: {flag[2:]} must be a class derived from ttrl_pop.")
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
