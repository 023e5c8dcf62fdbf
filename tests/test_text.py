"""Text that others wrote, on one printable line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttrl_pop.text import shown


@given(text=st.text(st.characters(exclude_categories=())), limit=st.integers(1, 80) | st.none())
def test_text_in_an_error_prints_and_is_short_and_shown_again_stays_as_it_is(text: str, limit: int | None) -> None:
    line = shown(text, limit)
    assert line.isprintable()
    assert limit is None or len(line) <= limit
    assert shown(line, limit) == line


@pytest.mark.parametrize(
    ("text", "limit", "line"),
    [
        (r"½ 好 \frac", 40, r"½ 好 \frac"),
        ("a\nb\x1b[31m", 40, r"a\nb\x1b[31m"),
        ("\u202e\u200b\ud800\xa0", 40, r"\u202e\u200b\ud800\xa0"),
        ("x" * 41, 40, "x" * 39 + "…"),
        ("\x00" * 3, 9, r"\x00\x00…"),
        ("x" * 1000 + "\n", None, "x" * 1000 + r"\n"),
    ],
)
def test_text_in_an_error_by_example(text: str, limit: int | None, line: str) -> None:
    assert shown(text, limit) == line
