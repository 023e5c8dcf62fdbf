"""A wrong majority, planted: what it does to the right answers under the plain reward, and what `gated` and the guard
keep of them."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import norm_noise, tiny_model, tiny_session
from torch.nn.functional import cross_entropy

from ttrl_pop.config import LoraConfig
from ttrl_pop.model.load import LoadedModel
from ttrl_pop.model.policy import Policy
from ttrl_pop.run.progress import Progress
from ttrl_pop.store.directory import RunDirectory
from ttrl_pop.train import train
from ttrl_pop.types import Problem, StepReport

PROBLEMS = tuple(Problem(f"p{i}", f"Q{i} A", i) for i in range(6))
RIGHT, WRONG = 0.24, 0.36
"""Shares of the right answer and of the likeliest wrong one; seven others share the rest."""
GOLD = {f"p{i}": str(i) for i in range(6)}
SETTINGS: dict[str, Any] = {
    "population__minds": 16,
    "population__samples_per_mind": 4,
    "problems_per_step": 6,
    "sampling__max_new_tokens": 2,
    "sampling__stop": ["\n"],
    "steps": 10,
    "learn__lr": 3e-3,
    "checkpoint__every": 1000,
}


@pytest.fixture(scope="module")
def planted() -> LoadedModel:
    """TinyLM, taught to answer one digit and a line feed, with these shares."""
    model = tiny_model()
    network, tokenizer = model.network, model.tokenizer
    token = {character: tokenizer(character)["input_ids"][0] for character in "0123456789\n"}
    prompts = torch.tensor([tokenizer(problem.prompt)["input_ids"] for problem in PROBLEMS])
    shares = torch.zeros(len(PROBLEMS), len(tokenizer), dtype=torch.float64)
    for i, row in enumerate(shares):
        for k in (1, 2, 4, 5, 6, 7, 8):
            row[token[str((i + k) % 10)]] = (1 - RIGHT - WRONG) / 7
        row[token[str(i)]], row[token[str((i + 3) % 10)]] = RIGHT, WRONG
    line_feeds = torch.full((len(PROBLEMS),), token["\n"])
    optimizer = torch.optim.Adam(network.requires_grad_(True).parameters(), lr=2e-2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(160):
            digits = torch.tensor([[token[str(int(d))]] for d in torch.randint(0, 10, (len(PROBLEMS),))])
            logits = network(input_ids=torch.cat([prompts, digits], 1)).logits
            loss = cross_entropy(logits[:, -2], shares) + cross_entropy(logits[:, -1], line_feeds)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    network.requires_grad_(False)
    learned = torch.softmax(network(input_ids=prompts).logits[:, -1], -1)
    assert (learned - shares).abs().max() < 0.03
    return model


def accuracies(planted: LoadedModel, folder: Path, **settings: Any) -> list[float]:
    """Share of right answers at each step."""
    model = replace(planted, network=copy.deepcopy(planted.network))
    policy = Policy(model, norm_noise(0.02), LoraConfig(rank=2, alpha=4), seed=1)
    session = tiny_session(policy, PROBLEMS, GOLD, **SETTINGS, **settings)
    reports = [event for event in train(session, RunDirectory(folder), Progress()) if isinstance(event, StepReport)]
    return [float(report.metrics["rollout/accuracy"] or 0.0) for report in reports]


@pytest.mark.slow
def test_gated_and_the_guard_keep_right_answers_that_the_majority_loses(planted: LoadedModel, tmp_path: Path) -> None:
    majority = accuracies(planted, tmp_path / "majority")
    assert majority[0] == pytest.approx(RIGHT, abs=0.05)
    assert majority[-1] < majority[0] - 0.07
    gated = accuracies(
        planted, tmp_path / "gated", vote__reward="gated", guard__flip_scaling=True, guard__skip_risky=True
    )
    assert gated[0] == majority[0], "the same rollouts"
    assert gated[-1] > gated[0] - 0.03
    assert gated[-1] > majority[-1] + 0.05
