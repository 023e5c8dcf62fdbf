"""The fit of latent minds in a world in which there is something to find: a class that is told in front, or not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from fakes import ALPHABET, SPECIAL, tiny_session, tiny_tokenizer

from ttrl_pop.fit.latent import LatentFigures, fit_latent
from ttrl_pop.model.load import LoadedModel
from ttrl_pop.model.policy import Policy
from ttrl_pop.population.latent import Latent
from ttrl_pop.population.options import LatentOptions
from ttrl_pop.report.minds import agreement
from ttrl_pop.run.session import Session
from ttrl_pop.types import Problem, Tally

pytestmark = pytest.mark.slow

LETTERS, CLASSES = "abcdefghijklmnopqrstuvwxyz", "+*=#"


def planted(world: int, steps: int = 600) -> LoadedModel:
    """A model of texts such as `+a?3b?7`, which has learned the answer of every letter in each of four classes; where
    the sign in front is left out it gives each of four answers a fourth."""
    random = np.random.default_rng(world)
    tokenizer = tiny_tokenizer()
    answers = np.stack([random.permutation(10)[:4] for _ in LETTERS])
    letters, classes, digits = (np.array(tokenizer(text)["input_ids"]) for text in (LETTERS, CLASSES, "0123456789"))
    config = transformers.LlamaConfig(
        vocab_size=len(SPECIAL) + len(ALPHABET),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(world)
        network = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(steps):
        drawn, asked = random.integers(4, size=(64, 1)), random.integers(len(LETTERS), size=(64, 2))
        mark = np.full_like(asked, tokenizer("?")["input_ids"][0])
        texts = np.stack([letters[asked], mark, digits[answers[asked, drawn]]], -1).reshape(64, -1)
        told = step % 2
        ids = torch.from_numpy(np.concatenate([classes[drawn], texts], 1) if told else texts)
        logits = network(input_ids=ids).logits[:, 1 + told : -1 : 3]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 2 + told :: 3].flatten())
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, 2 * (1 - step / steps))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return LoadedModel(network.eval().requires_grad_(False), tokenizer, 256, frozenset({1}), "planted")


def surveyed(session: Session, samples: int, temperature: float) -> list[Tally]:
    sampling = session.config.sampling.model_copy(update={"temperature": temperature})
    session = replace(session, backend=session.backend.with_sampling(sampling))
    minds = session.policy.population.spawn(0, 0, 16)
    groups = session.sample(session.problems, minds, samples, 0)
    # One token is the whole answer here, not the first of a number that was cut off.
    return [
        session.tally(replace(group, rollouts_G=tuple(replace(r, finish_reason="stop") for r in group.rollouts_G)))
        for group in groups
    ]


def fitted(world: int, kappa: float, **options: float) -> tuple[Session, LatentFigures]:
    problems = [Problem(letter, f"{letter}?", index) for index, letter in enumerate(LETTERS)]
    chosen: dict[str, Any] = {"kappa": kappa, "steps": 600, "lr": 0.03} | options
    policy = Policy(planted(world), Latent(LatentOptions(**chosen)))
    session = tiny_session(policy, problems, sampling__max_new_tokens=1, vote__extract="first-number")
    groups = [*session.sample(problems, [None], 32, 0, "fit", weights="base")]
    return session, fit_latent(policy, groups, 1.0, 4096, 0)


def agreements(session: Session) -> tuple[float, float]:
    """How often two answers of one mind agree, and of two minds, at temperature 1."""
    pairs = [agreement(tally) for tally in surveyed(session, 4, 1.0)]
    same, other = (float(np.mean(values)) for values in zip(*pairs, strict=True))  # type: ignore[arg-type]
    return same, other


@pytest.mark.parametrize("world", [0, 1, 2])
def test_codes_come_to_decide_what_the_model_leaves_open(world: int) -> None:
    session, figures = fitted(world, kappa=2.0)
    assert 1.7 < figures.base_bits < 2.4, "of four answers the model knows each to be as likely"
    assert figures.gap_bits >= 1.0
    same, other = agreements(session)
    assert same > other + 0.15, "minds that are copies have none"
    distinct = [len(tally.clusters) for tally in surveyed(session, 1, 0.0)]
    assert np.mean(np.array(distinct) >= 3) >= 0.8


def test_minds_part_further_where_no_completion_is_read_under_the_prior() -> None:
    chosen: dict[str, float] = {"bits": 4, "steps": 3000, "untold": 0.0}
    session, figures = fitted(1, kappa=4.0, **chosen)
    assert figures.gap_bits >= 1.0
    same, other = agreements(session)
    assert same > other + 0.4, "0.46 was measured (METHOD.md 9.4)"
    _, without = fitted(1, kappa=0.0, **chosen)
    assert abs(without.gap_bits) <= 0.05


def test_codes_of_no_free_bits_decide_nothing() -> None:
    _, figures = fitted(0, kappa=0.0)
    assert abs(figures.gap_bits) <= 0.05
