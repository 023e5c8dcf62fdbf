"""What an installed package holds: every file that the program reads, and nothing that is not said of it."""

import fnmatch
import re
import tomllib

from fakes import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_file_that_is_no_code_is_packed() -> None:
    folder = ROOT / "ttrl_pop"
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["ttrl_pop"]
    found = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    ]
    assert found
    assert [path for path in found if not any(fnmatch.fnmatch(path, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not fnmatch.filter(found, pattern)] == []


def test_everything_that_is_asked_for_is_pinned() -> None:
    def name(line: str) -> str:
        return re.split(r"[=<>\[~ ]", line)[0].lower().replace("_", "-")

    pinned = {name(line) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    project = PROJECT["project"]
    asked = [
        *project["dependencies"],
        *(line for extra in ("demo", "test") for line in project["optional-dependencies"][extra]),
    ]
    assert sorted({name(line) for line in asked if "==" not in line} - pinned) == []
