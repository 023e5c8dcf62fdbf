"""The harder example sets are what their rules make."""

import json
import random
from itertools import pairwise

import pytest

from dev import example_sets
from ttrl_pop.config_file import load_config


def test_there_are_two() -> None:
    written = {file.name for name in example_sets.RULES for file in example_sets.files(name)}
    assert written == {"sums.jsonl", "sums.gold.jsonl", "sequences.jsonl", "sequences.gold.jsonl"}


@pytest.mark.parametrize("name", ["sums.toml", "sequences.toml"])
def test_their_settings_are_settings(name: str) -> None:
    config = load_config(example_sets.EXAMPLES / name, {})
    assert config.problems_per_step == example_sets.PROBLEMS


@pytest.mark.parametrize("name", example_sets.RULES)
def test_the_files_are_what_the_rule_makes(name: str) -> None:
    for file, text in example_sets.files(name).items():
        assert file.read_text(encoding="utf-8") == text


def test_gold_is_right() -> None:
    for seed in range(50):
        row = example_sets.a_sum(random.Random(seed))
        a, b = row["id"].split("+")
        assert int(row["answer"]) == int(a) + int(b)
        row = example_sets.a_sequence(random.Random(seed))
        terms = [int(term) for term in [*row["prompt"].strip(",").split(", "), row["answer"]]]
        assert len(terms) == 8
        assert len({b - a for a, b in pairwise(terms)}) == 1


@pytest.mark.parametrize("name", example_sets.RULES)
def test_answers_are_not_in_the_question(name: str) -> None:
    for row in example_sets.rows(name):
        *_, asked = row["prompt"].split("\n")
        assert row["answer"] not in asked.replace(",", "").split(), json.dumps(row)
