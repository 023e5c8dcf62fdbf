"""What the documents say about the code: names resolve, defaults are the defaults, links lead somewhere."""

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from fakes import ROOT
from pydantic import BaseModel

from ttrl_pop.config import Config
from ttrl_pop.plugins import BUILT_IN, load

METHOD = ROOT / "docs" / "METHOD.md"
DOCUMENTS = sorted([*ROOT.glob("README.md"), *ROOT.glob("docs/*.md")])
NAME = re.compile(r"\bttrl_pop(?:\.[A-Za-z_]\w*)+")
DEFAULT = re.compile(r"`([A-Za-z_]\w*(?:\.\w+)*) = ([^`]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def resolve(name: str) -> Any:
    """The object that a dotted name stands for: the longest module in it, then attributes.

    Raises:
        AttributeError: there is no such thing.
    """
    found: Any = importlib.import_module("ttrl_pop")
    path = "ttrl_pop"
    for part in name.split(".")[1:]:
        path += f".{part}"
        if not hasattr(found, part):
            try:
                importlib.import_module(path)
            except ModuleNotFoundError as error:
                raise AttributeError(f"{name}: no {part} in {found!r}") from error
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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_name_in_a_document_resolves(document: Path) -> None:
    for name in set(NAME.findall(document.read_text())):
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
