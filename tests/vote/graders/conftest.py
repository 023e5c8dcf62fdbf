"""Math graders whose worker is up, and the gold answers of MATH-500."""

import json
from collections.abc import Iterator

import pytest
from fakes import ROOT

from ttrl_pop.vote.graders.math import MathGrader

MATH_500 = ROOT.parent / "shared" / "data" / "ttrl" / "math500.json"


@pytest.fixture(scope="module")
def grader() -> Iterator[MathGrader]:
    grader = MathGrader()
    assert grader.same("x+1", "1+x")  # the worker is up: what follows is not charged for its start
    yield grader
    grader.close()


@pytest.fixture(scope="module")
def hasty() -> Iterator[MathGrader]:
    """A grader that gives up early, though not on what takes milliseconds."""
    grader = MathGrader(seconds=0.4)
    assert grader.same("x+1", "1+x")
    yield grader
    grader.close()


@pytest.fixture(scope="module")
def golds() -> list[str]:
    if not MATH_500.exists():
        pytest.skip(f"{MATH_500} is not there")
    return [row["answer"] for row in json.loads(MATH_500.read_text(encoding="utf-8"))]
