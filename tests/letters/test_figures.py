"""Figures of the letters experiment, on texts whose figures are known."""

import numpy as np
import pytest
import torch

from ttrl_pop.latent.codes import BIT
from ttrl_pop.latent.free_transformer import FreeTransformer, Shape
from ttrl_pop.letters import figures, task


def text(letter: str, place: int, noise: set[int]) -> task.Tokens:
    body = ["_"] * 64
    body[place : place + 8] = letter * 8
    for position in noise:
        body[position] = "!"
    return np.array([task.SIGNS.index(sign) for sign in letter + ">" + "".join(body)])


def test_texts_that_share_place_and_noise_agree_within_and_not_across() -> None:
    texts = np.stack([text("A", 3, {20, 30}), text("A", 4, {20, 30}), text("B", 40, {25, 10}), text("B", 40, {25, 10})])
    found = figures.agreement(texts, each=2)
    assert found.well_formed == 1.0
    assert found.noise == 8 / 256
    assert found.near_same == 1.0
    assert found.near_other == 0.0
    assert found.correlation_same == 1.0
    assert -0.1 < found.correlation_other < 0.0


def test_places_two_apart_are_not_near_and_a_text_without_a_letter_has_none() -> None:
    empty = text("A", 0, set())
    empty[2:10] = task.BLANK
    found = figures.agreement(np.stack([text("A", 3, set()), text("A", 5, set()), empty, empty]), each=2)
    assert found.near_same == 0.0
    assert found.well_formed == 0.5
    # One noise-free constant row has no correlation.
    assert found.correlation_same == 0.0


def test_fresh_texts_of_the_task_agree_by_chance() -> None:
    """Two places differ by at most one with probability 0.0523."""
    found = figures.agreement(task.texts(256, np.random.default_rng(1)), each=8)
    assert abs(found.near_other - (57 + 2 * 56) / 57**2) < 0.005
    assert abs(found.correlation_same) < 0.05
    assert abs(found.noise - 1 / 16) < 0.01


def test_a_bit_that_never_changes_costs_one_bit_and_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all texts and tokens it is on, to the last digit of its type."""
    logits_H = torch.tensor([90.0, 0.0, -90.0])
    model = FreeTransformer(Shape(len(task.SIGNS), task.PROMPT + task.BODY, bits=3))
    monkeypatch.setattr(model, "encode", lambda states_BTD: logits_H.expand(*states_BTD.shape[:2], 3))
    found = figures.costs(model, 4, 0)
    assert found.marginal_kl == pytest.approx(2 * BIT)
    assert found.kl == pytest.approx(2 * BIT)
