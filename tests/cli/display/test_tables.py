"""Tables of answers, and of figures before and after."""

import pytest
from cli.display.drawing import plain

from ttrl_pop.cli.display.tables import answers_table, summary_table


@pytest.mark.parametrize("width", [40, 80])
def test_the_summary_shows_both_values_and_the_change(width):
    rows = [("maj@16", 0.75, 0.875), ("sigma", 0.0049, 0.0037), ("kl", None, 0.02), ("nan", float("nan"), 1.0)]
    shown = [line.split() for line in plain(summary_table("Result", rows, "before", "after"), width)]
    assert shown[0] == ["Result"]
    assert shown[1] == ["before", "after", "change"]
    assert shown[2] == ["maj@16", "0.75", "0.88", "+0.12"]
    assert shown[3] == ["sigma", "0.0049", "0.0037", "-0.0012"]
    assert shown[4] == ["kl", "-", "0.02"]
    assert shown[5] == ["nan", "nan", "1.00", "nan"]


def test_answers_show_their_votes():
    answers = [
        {"id": "a", "answer": "56", "agreement": 0.75, "margin": 0.5, "votes": {"54": 4, "56": 12}, "correct": True},
        {"id": "b", "answer": None, "agreement": 0.0, "margin": 0.0, "votes": {}, "correct": None},
        {
            "id": "c",
            "answer": "1",
            "agreement": 0.2,
            "margin": 0.1,
            "votes": dict.fromkeys("123456", 1),
            "correct": False,
        },
    ]
    shown = [line.split() for line in plain(answers_table(answers))]
    assert shown[1] == ["a", "0.75", "0.50", "█▃", "12·4", "✓", "56"]
    assert shown[2] == ["b", "0.00", "0.00", "no", "answer"]
    assert shown[3] == ["c", "0.20", "0.10", "█████", "1·1·1·1·1…", "✗", "1"]
    narrow = [line.split() for line in plain(answers_table(answers), 40)]
    assert narrow[1] == ["a", "0.75", "✓", "56"]
