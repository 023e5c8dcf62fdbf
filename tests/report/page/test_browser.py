"""The page in a real browser: it draws itself, asks nobody for anything, and no text of a model does anything."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from report.page import chromium
from report.page.chromium import Page
from report.page.made import learner, made_run, questions
from report.page.test_html import HOSTILE, MARKUP, hostile_run

from ttrl_pop.cli.recorded import Recorder
from ttrl_pop.report.page.data import LISTED, page_data
from ttrl_pop.report.page.html import page
from ttrl_pop.report.page.record import RunRecord

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium.browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(autouse=True)
def _forgotten(tab: Page) -> None:
    tab.requests.clear()
    tab.said.clear()


def shown(tab: Page, folder: Path, *records: RunRecord) -> str:
    """The address of a page with these runs, which the tab then shows."""
    file = folder / "page.html"
    file.write_text(page(page_data(records, {})), encoding="utf-8")
    tab.open(file.as_uri())
    return file.as_uri()


def texts(tab: Page, where: str) -> list[str]:
    """The text of each element that a selector finds."""
    found: list[str] = tab.run(f"[...document.querySelectorAll({json.dumps(where)})].map((each) => each.textContent)")
    return found


def send(tab: Page, where: str, event: str) -> None:
    """Let each element that a selector finds hear an event, as `new InputEvent('input')`."""
    tab.run(f"document.querySelectorAll({json.dumps(where)}).forEach((each) => each.dispatchEvent({event}))")


def fill(tab: Page, where: str, value: str) -> None:
    """Enter a value into a field."""
    tab.run(f"document.querySelector({json.dumps(where)}).value = {json.dumps(value)}")
    send(tab, where, "new InputEvent('input')")


def test_nothing_of_hostile_texts_runs_leaves_or_is_logged(tab: Page, tmp_path: Path):
    some = [*MARKUP, *HOSTILE[len(MARKUP) :: 8]]
    address = shown(tab, tmp_path, hostile_run(some), hostile_run(some[::-1]))
    # Every text is put into the page.
    tab.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    tab.until("[...document.querySelectorAll('.problem')].every((each) => each.querySelector('.voices'))")
    send(tab, ".strip", "new PointerEvent('pointermove')")
    assert tab.run("document.documentElement.dataset.pwned") is None
    assert texts(tab, "img, iframe, object, embed, base, link[rel=stylesheet], meta[http-equiv=refresh]") == []
    assert tab.run("document.scripts.length") == 3
    assert texts(tab, ".problem .prompt")[0] == HOSTILE[1]
    assert {asked for asked in tab.requests if not asked.startswith("data:")} == {address}
    assert tab.said == []


def test_a_reader_sees_what_the_run_has_written(tab: Page, tmp_path: Path):
    problems, gold = questions(6)
    alarms = {3: "one answer is the label of 64% of the problems"}
    record = Recorder(
        made_run(tmp_path / "run", problems, gold, learner(0, 4, gold), done=4, alarms=alarms).path
    ).record()
    shown(tab, tmp_path, record)
    # A chart for each figure, and heads that follow who points at a step, by keys as well.
    charts = texts(tab, ".plot svg")
    assert len(charts) == len(texts(tab, ".chart")) > 10
    agreement = [f"{row['vote/agreement']:.2f}" for row in record.metrics]
    assert texts(tab, ".readout")[0] == agreement[-1]
    send(tab, ".plot", "new KeyboardEvent('keydown', {key: 'Home'})")
    assert texts(tab, ".readout")[0].startswith(agreement[0])
    assert len(texts(tab, ".cross:not([hidden])")) == len(charts)
    assert texts(tab, ".alarms li") == [f"step 3: {alarms[3]}"]
    # Votes and texts at the visit that is asked for.
    tab.run("document.querySelector('.problem').open = true")
    tab.until("document.querySelector('.problem .votes')")
    fill(tab, ".problem input", "0")
    first = record.problems[0].visits[0]
    votes = [*zip(texts(tab, ".problem .vote .answer"), texts(tab, ".problem .vote .number"), strict=False)]
    assert votes[: len(first.votes)] == [(answer, str(count)) for answer, count in first.votes[: LISTED[1]]]
    assert texts(tab, ".problem .voice pre") == [voice.text for voice in first.voices]
    # What is searched for stays.
    fill(tab, "#search", "TIMES 4")
    assert texts(tab, ".problem .id") == ["p3"]
    assert tab.said == []


def test_the_page_follows_light_and_dark(tab: Page, tmp_path: Path):
    problems, gold = questions(2)
    run = made_run(tmp_path / "run", problems, gold, learner(0, 2, gold), done=2)
    shown(tab, tmp_path, Recorder(run.path).record())
    seen = []
    for scheme in ("light", "dark"):
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        paper, line = (
            tab.run(f"getComputedStyle(document.querySelector({json.dumps(where)}))[{json.dumps(name)}]")
            for where, name in (("html", "backgroundColor"), (".plot path[stroke^=var]", "stroke"))
        )
        seen.append((lightness(paper), lightness(line)))
    (paper, line), (dark_paper, dark_line) = seen
    assert paper > 0.9 > 0.2 > dark_paper
    assert dark_line > line


def lightness(colour: str) -> float:
    """Mean of the channels of `rgb(…)`, from 0 to 1."""
    channels = json.loads(f"[{colour.removeprefix('rgb(').removesuffix(')')}]")
    return sum(channels) / 3 / 255


def test_texts_are_drawn_where_they_lie(tab: Page, tmp_path: Path):
    problems, gold = questions(2)
    runs = [
        Recorder(made_run(tmp_path / name, problems, gold, learner(0, 1, gold), done=1).path).record() for name in "ab"
    ]
    file = tmp_path / "page.html"
    file.write_text(page(page_data(runs, {}, [[[0.0, 0.0], [1.0, 1.0]], [[0.5, 0.2]]])), encoding="utf-8")
    tab.open(file.as_uri())
    assert tab.run("document.querySelectorAll('#texts .plot svg .mark-symbol path').length") == 3
    assert tab.said == []
    shown(tab, tmp_path, *runs)
    assert tab.run("document.getElementById('texts').hidden")
