"""Seconds of one step of ours on the CPU, for a comparison at equal work with `benchmarks.peer_trl`.

One step is what `ttrl-pop train` does between two reports, without its files: spawn minds, sample, vote, learn.

Simplifications:
1. Every answer counts as the same and rewards alternate 0, 1 within a group, as on the peer's side: no group is idle.
2. Every step has the same prompts.

Loading the model is not counted. Run in a process of its own, which prints one JSON line:

    python -m benchmarks.ours MODEL_FOLDER --problems 16 --minds 16 --samples 1 --new-tokens 4 --steps 2
"""

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Sequence

import torch

from benchmarks.machine import peak_bytes
from benchmarks.peer_trl import times_table
from ttrl_pop.config import Config
from ttrl_pop.learn import Learner
from ttrl_pop.problems import ProblemSet
from ttrl_pop.rewards import Ballot
from ttrl_pop.sample import sample
from ttrl_pop.session import Session, check_trainable, open_session
from ttrl_pop.types import AnswerKey, FinishReason, Problem

SIGMA = 0.005
"""Fixed, so that nothing is calibrated; its value changes no cost."""


def one_answer(text: str, finish_reason: FinishReason) -> str:
    """An extraction by which nobody abstains: a group without an answer would be skipped."""
    return "1"


def alternating(ballot: Ballot) -> tuple[float, ...]:
    return tuple(float(index % 2) for index in range(len(ballot.answers_G)))


def configuration(given: argparse.Namespace) -> Config:
    """All that is not named here has its default."""
    population = {"name": given.population, "minds": given.minds, "samples_per_mind": given.samples}
    return Config.model_validate(
        {
            "model": given.model_folder,
            "device": "cpu",
            "dtype": "float32",
            "population": population | ({"options": {"sigma": SIGMA}} if given.population == "norm-noise" else {}),
            "sampling": {"max_new_tokens": given.new_tokens},
            "vote": {"extract": "benchmarks.ours:one_answer", "reward": "benchmarks.ours:alternating"},
            "learn": {
                "loss": "dapo",
                "lr": given.lr,
                "mask_truncated": False,
                "lora": {"rank": given.lora_rank, "alpha": 2 * given.lora_rank},
            },
        }
    )


def time_steps(session: Session, steps: int) -> list[dict[str, float]]:
    """Train for `steps` steps on all problems; of each the seconds of the whole, of its rollouts and of its learner.

    Raises:
        RuntimeError: a group was left out, so that the work was not that of the peer.
    """
    config, policy = session.config, session.policy
    learner = Learner(policy, config)
    problems, samples = session.problems.problems, config.population.samples_per_mind
    spent = []
    for step in range(1, steps + 1):
        began = time.perf_counter()
        minds = policy.population.spawn(config.seed, step, config.population.minds)
        rollouts = sample(session.backend, session.prompts, problems, minds, samples, config.seed, step)
        groups = list(rollouts)
        sampled = time.perf_counter()
        tallies = [session.tally(group) for group in groups]
        voted = time.perf_counter()
        update = learner.learn(tallies, step)
        session.backend.refresh()
        ended = time.perf_counter()
        if (update.groups_used, update.updates) != (len(problems), 1):
            raise RuntimeError(f"a step must use all {len(problems)} groups for one update, got {update}")
        spent.append({"seconds": ended - began, "rollouts": sampled - began, "learner": ended - voted})
    return spent


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ours", description="Time a step of ours.")
    parser.add_argument("model_folder", help="folder of a Hugging Face model")
    parser.add_argument("--population", default="norm-noise", help="norm-noise or none")
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--minds", type=int, default=16)
    parser.add_argument("--samples", type=int, default=1, help="per mind")
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-4)
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    config = configuration(given)
    check_trainable(config)
    problems = tuple(Problem(str(i), prompt, i) for i, prompt in enumerate(times_table(given.problems)))
    session = open_session(config, ProblemSet(problems, AnswerKey(), ""), adapter=True)
    spent = time_steps(session, given.steps)
    record = {key: [step[key] for step in spent] for key in ("seconds", "rollouts", "learner")} | {
        "prompt_tokens": [len(session.prompts[problem.id]) for problem in problems],
        "threads": torch.get_num_threads(),
        "peak_bytes": peak_bytes(),
    }
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
