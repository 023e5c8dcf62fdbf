"""What documents say of the code is so: names, defaults, links, the trees of files, the floors."""

import importlib
import re
import shlex
import shutil
import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer.main
from fakes import ROOT, save_tiny
from pydantic import BaseModel
from test_architecture import FLOORS

from ttrl_pop.cli.app import app
from ttrl_pop.config import Config
from ttrl_pop.letters.regimes import REGIMES
from ttrl_pop.plugins import BUILT_IN, load
from ttrl_pop.study.design import designed, read_study

METHOD = ROOT / "docs" / "METHOD.md"
ARCHITECTURE = ROOT / "docs" / "ARCHITECTURE.md"
README = ROOT / "README.md"
DOCUMENTS = sorted([README, ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "ttrl_pop").rglob("*.py"))
TOP = [path for path in FILES if path.count("/") == 1 or (path.count("/") == 2 and path.endswith("/__init__.py"))]
"""Files of the root, and one for each folder in it."""
NAME = re.compile(r"\bttrl_pop(?:\.[A-Za-z_]\w*)+")
GROUPS = {f"ttrl_pop.{kinds}" for kinds in ("populations", "backends", "graders", "rewards", "extractors")}
"""Groups of entry points: names in the documents that are no place in the code."""
DEFAULT = re.compile(r"`([A-Za-z_]\w*(?:\.\w+)*) = ([^`]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
TREE_LINE = re.compile(r"( *)([\w.]+/?)  +\S.*")
LETTERS = re.compile(r"!\[[^\]]*\]\((docs/letters\.svg)\)\n\n[^`]*`(ttrl-pop letters [^`]*)`")
"""The picture of the letters experiment, and the first command below it."""
RECIPE = re.compile(
    r"^```python\n(.*?)^```\n\n    PYTHONPATH=\. ttrl-pop ((?:[^\n]*\\\n)*[^\n]*)$", re.MULTILINE | re.DOTALL
)
"""Code of a plug-in, and the command below it, whose lines may end with a backslash."""
SMALL_TREE = """
```
ttrl_pop/        the face
  train.py       the loop
  vote/          the vote
    vote.py      one vote
```
"""
SMALL_DISK = ["ttrl_pop/__init__.py", "ttrl_pop/train.py", "ttrl_pop/vote/__init__.py", "ttrl_pop/vote/vote.py"]


def resolve(name: str) -> Any:
    """The object that a dotted name stands for: the longest module in it, then attributes.

    Raises:
        AttributeError: there is no such thing.
    """
    found: Any = importlib.import_module("ttrl_pop")
    path = "ttrl_pop"
    for part in name.split(".")[1:]:
        path += f".{part}"
        # A module first: the face has functions by the names of some.
        try:
            found = importlib.import_module(path)
        except ModuleNotFoundError as error:
            if error.name is not None and not error.name.startswith("ttrl_pop"):
                # It is there, and needs an extra that is not.
                return None
            found = getattr(found, part)
    return found


def defaults_of(key: str) -> list[Any]:
    """Defaults of a name in the code, a configuration key, or a key of the options of a built-in population."""
    if key.startswith("ttrl_pop."):
        return [resolve(key)]
    options = "population.options."
    if key.startswith(options):
        kinds: list[type[BaseModel]] = [load("population", name).Options for name in BUILT_IN["population"]]
        fields = [kind.model_fields.get(key.removeprefix(options)) for kind in kinds]
        return [field.default for field in fields if field is not None]
    found: Any = Config()
    for part in key.split("."):
        if not isinstance(found, BaseModel) or part not in type(found).model_fields:
            return []
        found = getattr(found, part)
    return [found]


def wrong_defaults(text: str) -> list[str]:
    """Quotations `key = value` in `text` that are not so."""
    return [
        f"{key} = {value}"
        for key, value in DEFAULT.findall(text)
        if tomllib.loads(f"x = {value}")["x"] not in defaults_of(key)
    ]


def block(text: str, first: str) -> list[str]:
    """Lines of the one code block that begins with `first`."""
    (found,) = re.findall(rf"^```\n({re.escape(first)}.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines: list[str] = found.splitlines()
    return lines


def tree_in(text: str) -> list[str]:
    """Paths that the tree in a document shows, in its order; a folder's line stands for its `__init__.py`."""
    paths, above = [], []
    for line in block(text, "ttrl_pop/"):
        match = TREE_LINE.fullmatch(line)
        assert match, f"a line of a tree is a name and a few words, got {line!r}"
        indent, name = match.groups()
        above = [*above[: len(indent) // 2], name.rstrip("/")]
        paths.append("/".join([*above, "__init__.py"] if name.endswith("/") else above))
    return paths


def wrong_lines(text: str, disk: Sequence[str]) -> list[str]:
    """Files of `disk` without a line in the tree of `text`, lines without a file, and second lines for one."""
    shown = Counter(tree_in(text))
    return sorted(((shown - Counter(disk)) + (Counter(disk) - shown)).elements())


def floors_in(text: str) -> list[tuple[str, ...]]:
    return [tuple(line.split(", ")) for line in block(text, "__main__\n")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_name_in_a_document_resolves(document: Path) -> None:
    for name in set(NAME.findall(document.read_text())) - GROUPS:
        resolve(name)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_to_one(document: Path) -> None:
    links = [link for link in LINK.findall(document.read_text()) if "://" not in link]
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_every_default_quoted_in_the_method_is_the_default() -> None:
    assert wrong_defaults(METHOD.read_text()) == []


def test_every_setting_of_the_learner_and_the_vote_is_in_the_method() -> None:
    text = METHOD.read_text()
    config = Config()
    keys = [f"{table}.{key}" for table in ("learn", "vote") for key in type(getattr(config, table)).model_fields]
    options = load("population", "norm-noise").Options
    keys += [f"population.options.{key}" for key in options.model_fields]
    assert [key for key in keys if not re.search(rf"\b{key}\b", text)] == []


@pytest.mark.parametrize(("document", "disk"), [(ARCHITECTURE, FILES), (README, TOP)], ids=["whole", "top"])
def test_the_tree_in_a_document_is_the_tree_on_disk(document: Path, disk: list[str]) -> None:
    assert wrong_lines(document.read_text(), disk) == []


def test_the_floors_in_the_document_are_those_that_hold() -> None:
    assert floors_in(ARCHITECTURE.read_text()) == FLOORS


@pytest.mark.parametrize(
    ("before", "after", "wrong"),
    [
        ("    vote.py      one vote\n", "", "ttrl_pop/vote/vote.py"),
        ("  train.py ", "  trian.py ", "ttrl_pop/train.py ttrl_pop/trian.py"),
        (
            "  vote/ ",
            "  vote.py ",
            "ttrl_pop/vote.py ttrl_pop/vote.py/vote.py ttrl_pop/vote/__init__.py ttrl_pop/vote/vote.py",
        ),
        ("    vote.py ", "  vote.py ", "ttrl_pop/vote.py ttrl_pop/vote/vote.py"),
        ("  train.py       the loop\n", 2 * "  train.py       the loop\n", "ttrl_pop/train.py"),
    ],
    ids=["no line", "no file", "no folder", "another folder", "two lines"],
)
def test_a_wrong_tree_is_seen(before: str, after: str, wrong: str) -> None:
    assert wrong_lines(SMALL_TREE, SMALL_DISK) == []
    assert wrong_lines(SMALL_TREE.replace(before, after), SMALL_DISK) == wrong.split()


def test_a_line_without_words_is_seen() -> None:
    with pytest.raises(AssertionError, match="a name and a few words"):
        tree_in("```\nttrl_pop/        the face\n  train.py\n```\n")


@pytest.mark.parametrize(
    ("before", "after"), [("\nrun\n", "\n"), ("\ncli\n", "\ncli, run\n"), ("train, fit", "fit, train")]
)
def test_wrong_floors_are_seen(before: str, after: str) -> None:
    text = ARCHITECTURE.read_text()
    assert text.count(before) == 1
    assert floors_in(text.replace(before, after)) != FLOORS


@pytest.mark.parametrize("name", ["ttrl_pop.learn.grpo.advantage", "ttrl_pop.groups.x", "ttrl_pop.types.Tally.agreed"])
def test_a_wrong_name_is_seen(name: str) -> None:
    assert NAME.findall(f"(`{name}`)") == [name]
    with pytest.raises(AttributeError):
        resolve(name)


@pytest.mark.parametrize(
    "quotation",
    [
        "learn.clip_high = 0.2",
        "learn.clip = 0.28",
        "lern.clip_high = 0.28",
        "learn.loss.x = 1",
        'learn.loss = "grpo"',
        "population.options.spred = 1",
        'population.options.spread = "dim"',
        "ttrl_pop.fit.sigma.MINDS = 3",
        "steps = 21",
    ],
)
def test_a_wrong_default_is_seen(quotation: str) -> None:
    assert wrong_defaults(f"and `{quotation}`, so") == [quotation]


def test_a_right_default_is_not_reported() -> None:
    assert wrong_defaults('`learn.clip_high = 0.28`, `learn.loss = "dapo"`, `learn.mask_truncated = true`') == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reward", "grader", "population", "backend"])
def test_a_recipe_runs_as_it_stands(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ARCHITECTURE.read_text().partition(f"\n### A {kind}\n")[2]
    code, command = RECIPE.findall(text)[0]
    (tmp_path / "my_plugins.py").write_text(code)
    examples = ROOT / "examples"
    (tmp_path / "examples").mkdir()
    shutil.copy(examples / "times-table.toml", tmp_path / "examples")
    problems = (examples / "times-table.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "examples" / "times-table.jsonl").write_text("".join(problems[:2]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_plugins", raising=False)
    name, *arguments = shlex.split(command.replace("\\\n", " "))
    assert any("my_plugins:" in argument for argument in arguments)
    small = ["--model", str(save_tiny(tmp_path / "model")), "--minds=2", "--set", "sampling.max_new_tokens=4"]
    commands: Any = typer.main.get_command(app)
    commands.commands[name].main([*arguments, *small], standalone_mode=False)
    assert len(capsys.readouterr().out.splitlines()) == (2 if name == "run" else 4)
    assert Path(sys.modules["my_plugins"].__file__ or "") == tmp_path / "my_plugins.py"


def test_what_has_run_on_a_gpu_is_what_was_measured() -> None:
    page = importlib.import_module("dev.gpu.page")
    assert (ROOT / "docs" / "GPU.md").read_text() == page.page()


def test_what_studies_came_to_is_what_was_measured() -> None:
    page = importlib.import_module("dev.studies.page")
    assert (ROOT / "docs" / "STUDIES.md").read_text() == page.page()


def test_what_the_paper_says_stands_beside_what_came_of_it() -> None:
    page = importlib.import_module("dev.studies.page")

    def difference(study: str, arm: str, to: str, **figures: tuple[float, float]) -> dict[str, Any]:
        values = {key.replace("_", "@"): (low + high) / 2 for key, (low, high) in figures.items()}
        intervals = {key.replace("_", "@"): [*pair] for key, pair in figures.items()}
        return {"study": study, "kind": "difference", "arm": arm, "to": to, **values, "intervals": intervals}

    # Minds come first there: they beat temperature where temperature is below them.
    rows = [
        difference(
            "minds", "temperature", "minds", pass_1=(0.1, 0.2), pass_16=(-0.2, -0.1), maj_2=(0, 1), maj_16=(0.1, 0.3)
        ),
        difference("minds", "temperature-high", "minds", pass_16=(0.1, 0.2)),
    ]
    (_, found) = page.claims(rows)
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in found.splitlines()[2:]]
    assert [line[1:] for line in lines] == [
        ["pass@16, temperature minus minds", "-0.150 ± 0.050", "held"],
        ["maj@16, temperature minus minds", "+0.200 ± 0.100", "not held"],
    ]
    assert "cannot be told" in page.claims([difference("noise", "token", "sequence", accuracy=(-0.1, 0.1))])[1]
    equal = {
        **difference("diversity", "minds", "temperature", distance=(0.1, 0.2)),
        "kind": page.EQUAL,
        "coherence": -2.0,
    }
    assert "| distance, minds minus temperature, coherence -2.00 | +0.150 ± 0.050 | held |" in page.claims([equal])[1]
    assert page.claims([difference("controls", "coin", "majority", accuracy=(0.1, 0.2))]) == []


def test_arms_that_the_paper_is_held_up_against_are_in_the_studies() -> None:
    page = importlib.import_module("dev.studies.page")
    for study, kind, arm, to, *_ in page.CLAIMS:
        found = designed(read_study(study))
        names = [*found.curves] if kind == page.EQUAL else [*found.arms]
        assert names.index(to) < names.index(arm)
        assert kind == page.EQUAL or to == found.first


def test_the_page_of_a_study_of_texts_holds_its_figures() -> None:
    page = importlib.import_module("dev.studies.page")
    figures = {"distance": 0.5, "distinct-1": 0.6, "distinct-2": 0.7, "distinct-3": 0.8, "coherence": -1.5}
    arm = {"study": "diversity", "kind": "arm", "seeds": 3, "problems": 30, "tokens": 100.0, **figures, "intervals": {}}
    over = {**arm, "kind": "difference", "arm": "warm", "to": "start", "intervals": {"distance": [0.4, 0.6]}}
    rows = [{**arm, "arm": "start"}, {**arm, "arm": "warm"}, over]
    text = page.measured({"command": "c", "on": "today"}, rows)
    assert "| arm | distance | distinct-1 | distinct-2 | distinct-3 | coherence | distance minus start |" in text
    assert "| warm | 0.500 ± 0.000 |" in text
    assert "+0.500 ± 0.100" in text
    assert "No two curves have a coherence in common." in text
    equal = {**over, "kind": page.EQUAL, "arm": "minds", "to": "temperature", "coherence": -2.0}
    assert "| minds minus temperature | -2.00 | +0.500 ± 0.100 | +0.700 ± 0.000 | above |" in page.measured(
        {"command": "c", "on": "today"}, [*rows, equal]
    )


def test_the_picture_of_the_letters_is_of_the_rows_that_were_measured() -> None:
    letters = importlib.import_module("dev.letters")
    rows = letters.measured()
    made = letters.picture(rows)
    assert (ROOT / "docs" / "letters.svg").read_text() == f"{made}\n", "python -m dev.letters > docs/letters.svg"
    assert [row["kappa"] for row in rows] == [1 / 64, 1 / 8, 1.0, 8.0]
    drawn = "".join(ElementTree.fromstring(made).itertext())
    for row in rows:
        assert len(row["same"]) == len(row["fresh"]) >= 5
    assert drawn.count("dead:") == sum(not row["alive"] for row in rows)
    assert len(made) < 100_000
    assert re.findall(r"(?:href|src|url)[=(]\W*(?:https?:)?//", made) == [], "a picture asks for nothing"


def test_the_command_below_the_picture_of_the_letters_is_the_one_that_was_run() -> None:
    ((picture, command),) = LETTERS.findall(README.read_text())
    assert (ROOT / picture).is_file()
    name, *arguments = shlex.split(command.partition(" > ")[0])[1:]
    commands: Any = typer.main.get_command(app)
    parsed = commands.commands[name].make_context(name, arguments).params
    rows = importlib.import_module("dev.letters").measured()
    assert {row["seed"] for row in rows} == {parsed["seed"]}
    assert parsed["seeds"] == 1
    assert {row["kappa"]: row["steps"] for row in rows} == {regime.kappa: regime.steps for regime in REGIMES}
    assert not parsed["kappa"]
    assert parsed["steps"] is None
