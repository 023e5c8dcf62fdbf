"""Rows of a page: what a text may hold, what it takes, and that nothing is told wrong."""

import dataclasses
import json
import math
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ttrl_pop.report.page.data import LISTED, TEXTS, embedded, number, page_data, readable
from ttrl_pop.report.page.html import page
from ttrl_pop.report.page.record import LONGEST, Answer, ProblemRecord, RunRecord, Visit, Voice, cut

MOST = 4_000_000
"""Bytes of a page of 100 steps and 200 problems."""

texts = st.text(st.characters() | st.sampled_from("<>&\u2028\u2029\u202e\x1b\n\r\ud800"))


def visit(step: int, label: str | None = "1", **changes: object) -> Visit:
    fields = {
        "step": step,
        "label": label,
        "flipped": False,
        "right": None,
        "accuracy": None,
        "agreement": 0.75,
        "margin": 0.5,
        "votes": () if label is None else ((label, 3),),
        "abstained": 1,
        "voices": (Voice(7, "one", label, True), Voice(8, "two", None, False)),
    }
    return Visit(**{**fields, **changes})


def record(*problems: ProblemRecord, steps: int = 1, **changes: object) -> RunRecord:
    metrics = tuple({"step": step, "vote/agreement": 0.5} for step in range(1, steps + 1))
    fields = {
        "name": "run",
        "settings": {"steps": steps, "population.minds": 4, "population.samples_per_mind": 1, "vote.labels": "minds"},
        "steps": steps,
        "metrics": metrics,
        "problems": problems,
        "finished": True,
    }
    return RunRecord(**{**fields, **changes})


@given(texts)
@example("</script><script>alert(1)</script><!--")
@example("\ud800")
def test_what_is_embedded_holds_no_markup_and_reads_back(text):
    made = embedded({"text": [text]})
    assert not set(made) & set("<>&\u2028\u2029")
    made.encode()
    assert json.loads(made) == {"text": [text]}


@given(texts)
@example("a\r\nb\u202ec")
def test_a_readable_text_keeps_its_lines_and_hides_nothing(text):
    made = readable(text)
    assert made.count("\n") == text.replace("\r\n", "\n").count("\n")
    assert len(made) == len(text.replace("\r\n", "\n"))
    hidden = {c for c in made if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}}
    assert hidden <= {"\n"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.123456789, 0.123457),
        (3, 3),
        (2.0, 2),
        (math.nan, None),
        (math.inf, None),
        (10**400, None),
        (True, None),
        ("1", None),
        (None, None),
    ],
)
def test_numbers_are_finite_and_short(value, shown):
    assert number(value) == shown
    assert embedded(number(value)) == json.dumps(shown)


@given(st.text(max_size=40), st.integers(2, 30))
def test_a_text_that_is_cut_keeps_both_ends(text, limit):
    made = cut(text, limit)
    assert (
        made == text
        if len(text) <= limit
        else made.startswith(text[: limit // 2]) and made.endswith(text[-(limit // 2) :])
    )


def test_a_visit_can_be_read_back():
    votes = tuple((f"a{i}", 9 - i) for i in range(9))
    one = visit(3, "a0", votes=votes, flipped=True, right=True, agreement=0.1995, abstained=2)
    row = page_data([record(ProblemRecord("p", "?", "a0", (one, visit(4, None))))], {})["runs"][0]["rows"][0]
    step, label, right, flipped, agreement, abstained, others, *pairs = row["visits"][0]
    assert (step, row["answers"][label], right, flipped, agreement, abstained) == (3, "a0", 1, 1, 200, 2)
    listed = [(row["answers"][pairs[i]], pairs[i + 1]) for i in range(0, len(pairs), 2)]
    assert tuple(listed) == votes[: LISTED[1]]
    assert others == sum(count for _, count in votes[LISTED[1] :])
    assert row["visits"][1][:3] == [4, -1, -1]


def test_what_became_of_each_problem_is_counted():
    ends = {"learned": (False, True), "kept": (True, True), "lost": (True, False), "never": (False, False)}
    problems = [
        ProblemRecord(name + str(i), "?", "1", (), Answer("x", 0.5, before, 0.25), Answer("y", 0.75, after, 0.5))
        for name, (before, after) in ends.items()
        for i in range(len(name))
    ]
    (run,) = page_data([record(*problems)], {})["runs"]
    assert run["outcomes"] == {name: len(name) for name in ends}
    assert [row["outcome"] for row in run["rows"]] == [problem.id[:-1] for problem in problems]
    assert run["heads"] == ["before training", "after training"]
    summary = {row["name"]: row for row in run["summary"]}
    assert summary["agreement"]["values"] == [0.5, 0.75]
    assert summary["agreement"]["change"] == [0.25, 0.25, 0.25]
    assert summary["majority accuracy"]["values"] == [number(8 / 20), number(11 / 20)]


def test_both_ends_are_of_the_same_problems():
    """A run that goes on has a survey of all problems and visits of some: what was not visited did not change."""
    problems = [ProblemRecord(str(i), "?", "1", (), Answer("1", 0.5, i < 2, float(i < 2))) for i in range(10)]
    for i in range(2):
        problems[i] = dataclasses.replace(problems[i], visits=(visit(1, right=True, accuracy=1.0, agreement=0.5),))
    (run,) = page_data([record(*problems)], {})["runs"]
    assert run["heads"] == ["before training", "last visit"]
    summary = {row["name"]: row for row in run["summary"]}
    assert summary["majority accuracy"]["values"] == [1, 1]
    assert summary["majority accuracy"]["change"] == [0, 0, 0]


def test_without_surveys_first_and_last_visits_stand_in():
    once = ProblemRecord("once", "?", "1", (visit(1, right=True, accuracy=1.0),))
    twice = ProblemRecord("twice", "?", "1", (visit(1, right=False), visit(2, right=True)))
    (run,) = page_data([record(once, twice, steps=2)], {})["runs"]
    assert run["heads"] == ["first visit", "last visit"]
    assert run["outcomes"] == {"learned": 1, "kept": 0, "lost": 0, "never": 0}
    surveyed = dataclasses.replace(once, before=Answer("2", 0.5, False))
    (run,) = page_data([record(surveyed, steps=2)], {})["runs"]
    assert run["heads"] == ["before training", "last visit"]
    assert run["outcomes"]["learned"] == 1


def test_settings_are_told_where_they_differ_or_are_not_the_default():
    runs = [record(settings={"a": 1, "b": 2, "c": [3], "d": 4}), record(settings={"a": 1, "b": 3, "c": [3]})]
    rows = page_data(runs, {"a": 1, "b": 2, "c": [4], "e": 5})["settings"]
    assert [(row["key"], row["values"], row["default"], row["differ"]) for row in rows] == [
        ("b", ["2", "3"], "2", True),
        ("c", ["[3]", "[3]"], "[4]", False),
        ("e", ["", ""], "5", False),
        ("d", ["4", ""], "", True),
    ]


def test_a_problem_of_several_runs_is_one_row_and_another_of_its_id_is_another():
    same = ProblemRecord("1", "What?", None, (visit(1),))
    data = page_data(
        [record(same), record(dataclasses.replace(same, gold="5")), record(ProblemRecord("1", "Who?", None, ()))], {}
    )
    assert data["problems"] == [{"id": "1", "prompt": "What?", "gold": "5"}, {"id": "1", "prompt": "Who?"}]
    assert [[row is not None for row in run["rows"]] for run in data["runs"]] == [
        [True, False],
        [True, False],
        [False, True],
    ]


def test_where_not_all_texts_fit_last_visits_come_first_then_first_ones_then_flips():
    long = tuple(Voice(mind, "x" * LONGEST, "1", True) for mind in (1, 2))
    visits = tuple(visit(step, flipped=step == 3, voices=long) for step in range(1, 6))
    fits = TEXTS // (2 * LONGEST + 60)
    count = fits * 2 // 5
    run = record(*(ProblemRecord(f"p{i}", "?", None, visits) for i in range(count)), steps=5)
    rows = page_data([run], {})["runs"][0]["rows"]
    kept = [sum(number in row["texts"] for row in rows) for number in range(5)]
    assert kept[0] == kept[4] == count
    assert 0 < kept[2] < count
    assert kept[1] == kept[3] == 0


def test_a_page_of_a_hundred_steps_and_two_hundred_problems_is_small():
    # Each text is as long as it may be, and all of it has to be escaped.
    voices = tuple(Voice(2**63 - 1 - mind, cut("<\n" * 5000), f"answer {mind}", True) for mind in range(2))
    visits = tuple(
        visit(step, f"a{step % 40}", voices=voices, votes=tuple((f"a{(step + j) % 40}", 2) for j in range(8)))
        for step in range(1, 101)
    )
    problems = (ProblemRecord(f"problem-{i}", "&" * 2000, "1", visits) for i in range(200))
    made = page(page_data([record(*problems, steps=100)], {}))
    assert len(made.encode()) < MOST


def test_figures_of_problems_held_out_are_drawn_where_there_are_any() -> None:
    measured = {"holdout/agreement": 0.25, "holdout/accuracy": None, "holdout/label_accuracy": None}
    metrics = ({"step": 1, "vote/agreement": 0.5, **measured}, {"step": 2, "vote/agreement": 0.6})
    data = page_data([record(steps=2, metrics=metrics), record(steps=2)], {})
    drawn = [chart["figure"] for chart in data["charts"] if chart["figure"].startswith("holdout/")]
    assert drawn == ["holdout/agreement"], "what no run has is left out"
    assert [run["figures"].get("holdout/agreement") for run in data["runs"]] == [[0.25, None], None]
