"""Numbers, bars, curves and times as they are drawn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttrl_pop.cli.display.marks import BLOCKS, bar, clock_time, duration, number, sparkline


def test_sparkline_by_example():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == BLOCKS
    assert sparkline([5.0, 5.0, 5.0]) == BLOCKS[4] * 3
    assert sparkline([0.0, None, 1.0, float("nan"), float("inf"), float("-inf")]) == "▁ █   "
    assert sparkline([]) == ""
    assert sparkline([None]) == " "
    assert sparkline([0.0] * 100 + [1.0] * 3, width=4) == "▁███"
    assert set(sparkline([1.0, 1.001, 0.999])) <= set(BLOCKS[3:5]), "noise around a constant is flat"


@given(values=st.lists(st.none() | st.floats(), max_size=80), width=st.integers(-2, 70))
def test_sparkline_of_any_floats(values, width):
    drawn = sparkline(values, width)
    assert len(drawn) == min(len(values), max(1, width))
    assert set(drawn) <= set(BLOCKS + " ")


@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=20))
def test_sparkline_keeps_the_order_of_values(values):
    drawn = sparkline(values)
    for (value, block), (other, other_block) in zip(
        sorted(zip(values, drawn, strict=True)), sorted(zip(values, drawn, strict=True))[1:], strict=False
    ):
        assert value <= other
        assert block <= other_block


@given(share=st.floats(-1, 2), width=st.integers(1, 30))
def test_a_bar_is_as_wide_as_asked_and_as_full_as_its_share(share, width):
    drawn = bar(share, width)
    assert len(drawn) == width
    filled = drawn.count("━") + drawn.count("╸") / 2
    assert abs(filled - min(1, max(0, share)) * width) <= 0.25


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0, "0.00"),
        (0.714, "0.71"),
        (-0.0012, "-0.0012"),
        (1e-5, "1e-05"),
        (410.4, "410"),
        (1e300, "1e+300"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
    ],
)
def test_numbers(value, shown):
    assert number(value) == shown


def test_clock_times():
    assert [clock_time(s) for s in (0.0, 65.9, 3600.0, 36_061.0)] == ["0:00", "1:05", "1:00:00", "10:01:01"]


def test_durations_say_their_units():
    seconds = (0.4, 45.2, 59.6, 876.0, 9_900.0, 86_399.0, 273_600.0)
    assert [*map(duration, seconds)] == [
        *("0 s", "45 s", "1 min 0 s", "14 min 36 s", "2 h 45 min", "1 d 0 h", "3 d 4 h"),
    ]
