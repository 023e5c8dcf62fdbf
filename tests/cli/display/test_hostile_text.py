"""What a model or a file wrote, and what it cannot make a display do."""

import re
import unicodedata

import pytest
from cli.display.drawing import HOSTILE, SGR, live, rendered, tally_of
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from ttrl_pop.cli.display import open_display
from ttrl_pop.cli.display.tables import answers_table, summary_table
from ttrl_pop.text import safe


@given(text=st.text(st.characters(exclude_categories=())), limit=st.integers(1, 80))
def test_safe_text_is_short_visible_and_stays_as_it_is(text, limit):
    shown = safe(text, limit)
    assert len(shown) <= limit
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert safe(shown, limit) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[red] ½ 好 é ✓", "[red] ½ 好 é ✓"),
        ("\x1b[31m", "␛[31m"),
        ("a\x00b\nc\td\x7f", "a␀b␊c␉d␡"),
        ("\u202e\u2066\u200e\x9b\ud800\ufe0f", "������"),
        ("x" * 61, "x" * 59 + "…"),
        ("x" * 60, "x" * 60),
    ],
)
def test_safe_text_by_example(text, shown):
    assert safe(text) == shown


def everything_with(text: str):
    """Each door through which foreign text reaches the screen."""
    display = live()
    display.begin(text, 3, 0)
    display.phase(text, 2)
    display.tally(tally_of(text, text), True)
    display.tally(tally_of("other", None), False)
    yield display
    yield summary_table(text, [(text, 0.1, 0.2), ("b", None, 1.0)], text, text)
    yield answers_table(
        [{"id": text, "answer": text, "agreement": 0.5, "margin": 0.1, "votes": {text: 3}, "correct": True}]
    )


@pytest.mark.parametrize("width", [80, 40])
@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:12]))
def test_hostile_text_cannot_style_move_or_widen_anything(text, width):
    for hostile, harmless in zip(everything_with(text), everything_with("harmless"), strict=True):
        drawn = rendered(hostile, width)
        assert set(SGR.findall(drawn)) <= set(SGR.findall(rendered(harmless, width)))
        rest = SGR.sub("", drawn)
        assert not {c for c in rest if unicodedata.category(c) in {"Cc", "Cf", "Cs"}} - {"\n"}
        assert all(cell_len(line) <= width for line in rest.splitlines())


def test_markup_is_shown_as_it_stands():
    for renderable in everything_with("[red]x[/red]"):
        assert "[red]x[/red]" in SGR.sub("", rendered(renderable, 100))


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:12]))
def test_hostile_notices_reach_a_terminal_as_text(text, terminal):
    stream, screen = terminal
    with open_display(False, stream) as display:
        display.notice(text)
        display.notice("done")
    rest = re.sub(r"\x1b\[(\?25[lh]|2K|1?A|[\d;]*m)", "", screen())
    assert "done" in rest
    assert not {c for c in rest if unicodedata.category(c) in {"Cc", "Cf", "Cs"}} - {"\n", "\r"}
