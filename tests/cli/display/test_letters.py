"""A regime of the letters experiment as a person sees it."""

from typing import Any

import pytest
from cli.display.drawing import SGR, plain, rendered

from ttrl_pop.cli.display.letters import fraction, regime
from ttrl_pop.letters import task


def row(**changed: Any) -> dict[str, Any]:
    found = {
        "temperature": 0.6,
        "well_formed": 0.91,
        "noise": 0.02,
        "near_same": 0.8,
        "near_other": 0.05,
        "correlation_same": 0.13,
        "correlation_other": -0.004,
    }
    return {
        "kappa": 0.125,
        "seed": 3,
        "alive": True,
        "gap_bits": 7.94,
        "temperatures": [found, found | {"temperature": 1.0, "well_formed": 0.5}],
        "same": ["K>" + "_" * 20 + "KKK!KKKK" + "_" * 36],
        "fresh": ["L>" + "_" * 50 + "LLLLLLLL" + "_" * 6],
    } | changed


def test_a_regime_shows_its_figures_at_the_first_temperature_and_its_texts_side_by_side() -> None:
    head, figures, _, *texts = plain(regime(row()), 136)
    assert head == "κ = 1/8 bit a token   seed 3   codes are worth 7.9 bits a text"
    assert figures == (
        "temperature 0.6   well-formed 0.91   at one place 0.80 of one code, 0.05 of two"
        "   noise alike 0.13 of one code, 0.00 of two"
    )
    assert texts == ["  ".join(row()["same"] + row()["fresh"])]
    assert len(row()["same"][0]) == task.PROMPT + task.BODY


def test_a_dead_regime_is_called_dead_and_its_gap_is_not_given_as_a_worth() -> None:
    head, *_ = plain(regime(row(alive=False, gap_bits=0.1)), 136)
    assert head.endswith("dead: the code is not used")


def test_noise_and_letters_are_styled_apart_from_blanks() -> None:
    *_, text = rendered(regime(row(same=["K>_!" + "_" * 62])), 136).splitlines()
    pieces = [piece for piece in SGR.split(text) if piece.strip()]
    assert pieces == ["K>", "_", "!", "_" * 62, "L>", "_" * 50, "LLLLLLLL", "_" * 6]


@pytest.mark.parametrize(("kappa", "said"), [(1 / 64, "1/64"), (0.125, "1/8"), (1.0, "1"), (8.0, "8")])
def test_a_number_of_free_bits_is_a_fraction_of_one(kappa: float, said: str) -> None:
    assert fraction(kappa) == said
