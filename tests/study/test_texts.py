"""Texts of a study: read in parts that memory suffices for, whatever the size of a group."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import PROBLEMS, tally_of, tiny_session
from torch import Tensor

from ttrl_pop.packing.pack import Pack
from ttrl_pop.run.session import Session
from ttrl_pop.study import texts
from ttrl_pop.types import Tally

BUDGET = 14


@pytest.fixture(autouse=True)
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "embedder", lambda: lambda said: np.zeros((len(said), 2)))


def written(session: Session) -> Tally:
    """A group of one problem, some of whose completions have no token."""
    prompt = session.prompts[PROBLEMS[0].id][-8:]
    tally = tally_of(["1"] * 12, PROBLEMS[0])
    rollouts = tuple(
        replace(
            rollout,
            prompt_ids=prompt,
            completion_ids=(ids := tuple(range(3 + i, 3 + i + i % 5))),
            logprobs=(0.0,) * len(ids),
        )
        for i, rollout in enumerate(tally.group.rollouts_G)
    )
    return replace(tally, group=replace(tally.group, rollouts_G=rollouts))


def watch(session: Session, monkeypatch: pytest.MonkeyPatch, most: float = float("inf")) -> list[int]:
    """Tokens of each forward from now on; one of more than `most` finds no memory."""
    forwards: list[int] = []
    hidden = session.policy.hidden

    def watched(packed: Pack, *more: Any) -> Tensor:
        forwards.append(len(packed.ids_N))
        if forwards[-1] > most:
            raise MemoryError
        return hidden(packed, *more)

    monkeypatch.setattr(session.policy, "hidden", watched)
    return forwards


def test_a_group_is_read_in_parts_of_the_token_budget_and_halved_where_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = tiny_session()
    tally = written(session)
    whole = watch(session, monkeypatch)
    expected = [row["coherence"] for row in texts.text_rows(session, [tally])]
    assert [value is None for value in expected] == [i % 5 == 0 for i in range(12)]
    small = tiny_session(learn__token_budget=BUDGET)
    for most in (float("inf"), 12):
        parts = watch(small, monkeypatch, most)
        rows = list(texts.text_rows(small, [tally]))
        assert [row["rollout"] for row in rows] == list(range(12))
        assert [row["coherence"] for row in rows] == pytest.approx(expected)
        done = [tokens for tokens in parts if tokens <= most]
        assert len(done) > len(whole) == 1
        assert max(done) <= min(BUDGET, most) < whole[0]
