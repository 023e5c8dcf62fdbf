"""Seconds of ours: of a whole step, of its rollouts alone, or of its learner alone.

A step is what `ttrl-pop train` does between two reports, without its files: spawn minds, sample, vote, learn. Rollouts
are its first half, with the adapter attached. The learner alone is given rollouts that nobody sampled: random tokens.

Simplifications:
1. Every answer counts as the same and rewards alternate 0, 1 within a group, as on the peers' side: no group is idle.
2. Every step has the same prompts.
3. Where `--lengths` plans them, no completion ends by itself, and each ends where planned.

Loading the model is not counted. Run in a process of its own, which prints one JSON line; started by torchrun, several
processes do it together, the first of which prints:

    python -m benchmarks.ours MODEL_FOLDER --problems 16 --minds 16 --samples 1 --new-tokens 4 --steps 2
"""

import argparse
import logging
import random
import sys
import warnings
from collections.abc import Callable, Sequence

from torch import Tensor

from benchmarks.machine import now, peak_bytes, tell
from benchmarks.workload import EXAMPLES, QUESTIONS, completion_lengths, distinct_work, times_table
from ttrl_pop.cli.launch import take_part
from ttrl_pop.config import Config
from ttrl_pop.learn.learner import Learner
from ttrl_pop.packing.radix import alike
from ttrl_pop.population.base import NoPopulation
from ttrl_pop.ranks import launched
from ttrl_pop.run.session import Session, check_trainable, open_session
from ttrl_pop.sample.hf.backend import HfBackend, Writing
from ttrl_pop.types import AnswerKey, FinishReason, Group, Mind, Problem, ProblemSet, Rollout, Tally, Update
from ttrl_pop.vote.rewards.base import Ballot

Record = dict[str, list[float]]
WORK = ("layer_tokens", "head_positions")
"""What one forward must compute, noted for each repeat, as `benchmarks.workload` counts it."""
SIGMA = 0.005
"""Fixed, so that nothing is calibrated; its value changes no cost."""


class Silent(NoPopulation):
    """Minds without noise that read every prompt for themselves: the work of a population, and none of its cost."""

    def reader(self, mind: Mind) -> Mind:
        return mind


class Planned(HfBackend):
    """Every completion has the length that is planned for its request, whatever the model would do."""

    lengths: Sequence[int] | None = None
    """By request; None plans all that `max_new_tokens` allows."""

    def _extend(self, rows: Sequence[Writing], tokens_BT: Tensor, logprobs_BT: Tensor) -> None:
        for writing, tokens, logprobs in zip(rows, tokens_BT.tolist(), logprobs_BT.tolist(), strict=True):
            planned = self.lengths[writing.index] if self.lengths else self.sampling.max_new_tokens
            room = planned - len(writing.ids)
            writing.ids += tokens[:room]
            writing.logprobs += logprobs[:room]
            if len(writing.ids) == planned:
                writing.reason = "length"


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
            "device": given.device,
            "dtype": given.dtype,
            "backend": "hf" if given.lengths == "own" else "benchmarks.ours:Planned",
            "backend_options": {"graphs": given.graphs},
            # As peers have them: texts, and no turns of a chat.
            "problems": {"form": "raw"},
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


def time_steps(session: Session, steps: int) -> Record:
    """Train for `steps` steps on all problems; of each the seconds of the whole, of its rollouts and of its learner,
    and the largest resident set up to its end."""
    timed = TimedSteps(session)
    for _ in range(steps):
        timed.step()
    return timed.spent


class TimedSteps:
    """Training of one session, step by step, so that the steps of several can take turns."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.spent: Record = {"seconds": [], "rollouts": [], "learner": [], "peaks": [], **{key: [] for key in WORK}}
        self._learner = Learner(session.policy, session.config, session.ranks)

    def step(self) -> None:
        """Train for one more step, and note it."""
        session, spent = self.session, self.spent
        step = len(spent["seconds"]) + 1
        began = now()
        groups = sampled_groups(session, step)
        sampled = now()
        tallies = [session.tally(group) for group in groups]
        voted = now()
        update = self._learner.learn(tallies, step)
        session.backend.refresh()
        ended = now()
        check_complete(update, tallies)
        spent["seconds"].append(ended - began)
        spent["rollouts"].append(sampled - began)
        spent["learner"].append(ended - voted)
        spent["peaks"].append(peak_bytes())
        note_work(spent, session, groups)


def time_rollouts(session: Session, steps: int) -> Record:
    """Sample all groups `steps` times."""
    spent: Record = {"seconds": [], **{key: [] for key in WORK}}
    for step in range(1, steps + 1):
        began = now()
        groups = sampled_groups(session, step)
        spent["seconds"].append(now() - began)
        note_work(spent, session, groups)
    return spent


def time_learner(session: Session, steps: int) -> Record:
    """Learn `steps` times from rollouts of max_new_tokens random tokens."""
    learner = Learner(session.policy, session.config)
    spent: Record = {"seconds": [], **{key: [] for key in WORK}}
    for step in range(1, steps + 1):
        groups = made_groups(session, step)
        tallies = [session.tally(group) for group in groups]
        began = now()
        update = learner.learn(tallies, step)
        spent["seconds"].append(now() - began)
        check_complete(update, tallies)
        note_work(spent, session, groups)
    return spent


PARTS: dict[str, Callable[[Session, int], Record]] = {
    "step": time_steps,
    "rollouts": time_rollouts,
    "learner": time_learner,
}


def note_work(spent: Record, session: Session, groups: Sequence[Group]) -> None:
    """Append what one forward over these rollouts must compute."""
    reader = session.policy.population.reader
    work = distinct_work(
        (reader(rollout.mind), rollout.prompt_ids, rollout.completion_ids)
        for group in groups
        for rollout in group.rollouts_G
    )
    for key in WORK:
        spent[key].append(getattr(work, key))


def sampled_groups(session: Session, step: int) -> list[Group]:
    config = session.config
    minds = session.policy.population.spawn(config.seed, step, config.population.minds)
    samples = config.population.samples_per_mind
    return list(session.sample(session.problems, minds, samples, step))


def made_groups(session: Session, step: int) -> list[Group]:
    """Rollouts of every mind on every problem, of random tokens."""
    config, policy = session.config, session.policy
    draw = random.Random(step)
    vocabulary = range(policy.network.config.get_text_config().vocab_size)
    length = config.sampling.max_new_tokens
    minds = policy.population.spawn(config.seed, step, config.population.minds)
    return [
        Group(
            problem,
            tuple(
                Rollout(
                    mind,
                    session.prompts[problem.id],
                    tuple(draw.choices(vocabulary, k=length)),
                    (0.0,) * length,
                    "",
                    "length",
                    policy.version,
                )
                for mind in minds
                for _ in range(config.population.samples_per_mind)
            ),
        )
        for problem in session.problems
    ]


def check_complete(update: Update, tallies: Sequence[Tally]) -> None:
    """
    Raises:
        RuntimeError: a group was left out, so that the work was not that of the peer.
    """
    if (update.groups_used, update.updates) != (len(tallies), 1):
        raise RuntimeError(f"a step must use all {len(tallies)} groups for one update, got {update}")


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ours", description="Time a step of ours.")
    parser.add_argument("model_folder", help="folder of a Hugging Face model")
    parser.add_argument("--part", default="step", choices=tuple(PARTS))
    parser.add_argument("--population", default="norm-noise", help="norm-noise, none or package.module:Name")
    parser.add_argument("--problems", type=int, default=16, help=f"1 to {QUESTIONS}")
    parser.add_argument("--examples", type=int, default=0, help=f"answered in each prompt, 0 to {EXAMPLES}")
    parser.add_argument("--minds", type=int, default=16)
    parser.add_argument("--samples", type=int, default=1, help="per mind")
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--lengths", default="own", choices=("own", "even", "mixed"), help="own: until the model ends")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--graphs", action="store_true", help="decode steps as CUDA graphs")
    return parser.parse_args(arguments)


def opened(given: argparse.Namespace) -> Session:
    """A session on the prompts, whose engine writes completions of the planned lengths."""
    config = configuration(given)
    check_trainable(config)
    prompts = times_table(given.problems, given.examples)
    problems = tuple(Problem(str(i), prompt, i) for i, prompt in enumerate(prompts))
    session = open_session(config, ProblemSet(problems, AnswerKey(), ""), adapter=True)
    if given.lengths == "mixed":
        rows = given.problems * config.group_size
        session.backend.lengths = completion_lengths(given.lengths, rows, given.new_tokens)
    return session


def main(arguments: Sequence[str] | None = None) -> int:
    given = parsed(arguments)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if launched.size() > 1:
        take_part(lambda: print_seconds(given))
    return print_seconds(given)


def print_seconds(given: argparse.Namespace) -> int:
    session = opened(given)
    prompt_ids = [session.prompts[problem.id] for problem in session.problems]
    spent = PARTS[given.part](session, given.steps)
    return tell(**spent, prompt_tokens=[len(ids) for ids in prompt_ids], alike=alike(prompt_ids))


if __name__ == "__main__":
    sys.exit(main())
