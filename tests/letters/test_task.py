"""Texts of the letters experiment and what counts as one."""

import numpy as np
import pytest

from ttrl_pop.letters import task

BODY = "_" * 64


def tokens(text: str) -> task.Tokens:
    return np.array([task.SIGNS.index(sign) for sign in text])


def test_texts_are_of_the_task() -> None:
    found = task.texts(200, np.random.default_rng(0))
    assert found.shape == (200, 66)
    assert all(task.parse(text).is_well_formed for text in found)
    # 12,800 signs: the rate lies within five standard errors.
    assert abs((found == task.NOISE).mean() * 66 / 64 - 1 / 16) < 0.011
    places = [task.parse(text).place for text in found]
    assert min(places) < 5
    assert max(places) > 50


@pytest.mark.parametrize(
    ("body", "place", "is_well_formed"),
    [
        ("_" * 10 + "K" * 8 + "_" * 46, 10, True),
        ("K" * 8 + "_" * 56, 0, True),
        ("_" * 56 + "K" * 8, 56, True),
        ("_" * 10 + "K!KKK!KK" + "_" * 44 + "!_", 10, True),
        # Noise at an end of the run: the first place that explains the letters.
        ("_" * 10 + "!KKKKKKK!" + "_" * 45, 10, True),
        ("_" * 10 + "KKKKKKK" + "_" * 47, 10, False),
        ("_" * 10 + "KKKKKKKKK" + "_" * 45, 10, False),
        ("_" * 10 + "KKKK_KKK" + "_" * 46, 10, False),
        ("_" * 10 + "K" * 8 + "_" * 20 + "K" + "_" * 25, 10, False),
        ("_" * 10 + "K" * 8 + "_" * 45 + "L", 10, False),
        ("_" * 10 + "L" * 8 + "_" * 46, None, False),
        (BODY, None, False),
        ("!" * 64, None, False),
    ],
)
def test_parse(body: str, place: int | None, is_well_formed: bool) -> None:
    assert len(body) == 64
    assert task.parse(tokens("K>" + body)) == task.Parsed(place, is_well_formed)


def test_a_text_is_printed_as_it_is_read() -> None:
    text = "K>" + "_" * 10 + "K!KKK!KK" + "_" * 46
    assert task.spelled(tokens(text)) == text
