"""Equality of forms: by themselves, without the keys and the process that stand before them in the math grader."""

import itertools
import json
from typing import Any

import pytest
from fakes import CASES
from math_verify import LatexExtractionConfig, parse, verify

from ttrl_pop.vote.graders.algebra.comparing import equal
from ttrl_pop.vote.graders.algebra.reading import read
from ttrl_pop.vote.graders.exact import ExactGrader
from ttrl_pop.vote.graders.math import MathGrader, is_refused


def cases(name: str) -> Any:
    return json.loads((CASES / f"{name}.json").read_text(encoding="utf-8"))


def left_open(name: str) -> list[tuple[str, str]]:
    """The pairs that the math grader would put to the process of algebra."""
    key = ExactGrader().key
    return [(a, b) for a, b in cases(name) if key(a) != key(b) and not is_refused(a) and not is_refused(b)]


@pytest.mark.parametrize(("a", "b"), left_open("math_equal"))
def test_equal_forms(a: str, b: str) -> None:
    assert equal(read(a), read(b))
    assert equal(read(b), read(a))


@pytest.mark.parametrize(("a", "b"), left_open("math_different"))
def test_different_forms(a: str, b: str) -> None:
    assert not equal(read(a), read(b))
    assert not equal(read(b), read(a))


def test_equality_is_not_transitive() -> None:
    short, as_set, long = map(read, ("1,2", r"\{1,2\}", "1,2,2"))
    assert equal(short, as_set)
    assert equal(as_set, long)
    assert not equal(short, long)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"\frac{1}{100!}", r"\frac{1}{101!}"),
        ("0.333333", "1/3"),
        ("10^{-30}", "10^{-31}"),
        ("(1,2)", r"\{1,2\}"),
        ("1,1,2", "1,2"),
        ("2(3)", "5"),
    ],
)
def test_math_verify_alone_would_be_fooled(grader: MathGrader, a: str, b: str) -> None:
    parsed = [parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None) for text in (a, b)]
    assert verify(*parsed, timeout_seconds=None)
    assert verify(*parsed[::-1], timeout_seconds=None)
    assert not grader.same(a, b)


@pytest.mark.slow
def test_gold_answers_of_math_500_are_equal_only_where_listed(grader: MathGrader, golds: list[str]) -> None:
    spellings_of: dict[str, list[str]] = {}
    for gold in dict.fromkeys(golds):
        assert not is_refused(gold)
        spellings_of.setdefault(grader.key(gold), []).append(gold)
    assert [spellings for spellings in spellings_of.values() if len(spellings) > 1] == cases("math500_same_key")
    # The function that the worker calls: forty thousand questions through a pipe would take longer, not more.
    held = [
        list(pair)
        for pair in itertools.combinations([spellings[0] for spellings in spellings_of.values()], 2)
        if equal(*map(read, pair))
    ]
    assert held == cases("math500_equal")
    assert all(grader.same(a, b) for a, b in held)
