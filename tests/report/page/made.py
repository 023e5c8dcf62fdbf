"""A run directory without a model: votes of texts that are made up, written by what writes those of a run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttrl_pop.config import Config
from ttrl_pop.config_file import dump_config, load_config
from ttrl_pop.read.problems import fingerprint, write_gold, write_problems
from ttrl_pop.report.rows import answer_row, metrics_row, rollout_rows
from ttrl_pop.report.step import step_report
from ttrl_pop.store import files, identity
from ttrl_pop.store.directory import IDENTITY, RunDirectory, create
from ttrl_pop.types import AnswerKey, Group, Mind, Problem, Rollout, Tally, Update
from ttrl_pop.vote.rules import build_rules
from ttrl_pop.vote.vote import vote

Write = Callable[[int, Problem, int], str]
"""(step, problem, mind) → a completion that boxes its answer."""

UPDATE = Update(1, -0.01, 0.5, 0.2, None, 0.0, 1e-6, 1e-5, 10, 1, 0, 1, 0, 512, 1e-4, 5e-4)


def questions(count: int) -> tuple[list[Problem], dict[str, str]]:
    problems = [
        Problem(f"p{i}", ({"role": "user", "content": f"What is {i} times {i + 1}?"},), i) for i in range(count)
    ]
    return problems, {problem.id: str(i * (i + 1)) for i, problem in enumerate(problems)}


def learner(seed: int, steps: int, gold: dict[str, str]) -> Write:
    """Minds of which more and more write the gold answer."""
    chances = np.random.default_rng(seed)
    hard = {problem: chances.random() for problem in gold}

    def write(step: int, problem: Problem, mind: int) -> str:
        right = chances.random() < min(1.0, 0.35 + 0.75 * (step / max(1, steps)) * (1.2 - hard[problem.id]))
        answer = gold[problem.id] if right else str(chances.integers(3, 60))
        return f"Well, mind {mind} multiplies at step {step}.\nSo the answer is \\boxed{{{answer}}}."

    return write


def made_run(
    path: Path,
    problems: Sequence[Problem],
    gold: dict[str, str],
    write: Write,
    *,
    done: int,
    alarms: dict[int, str] | None = None,
    surveys: bool = True,
    **settings: Any,
) -> RunDirectory:
    """A run of `done` steps, each of all problems.

    Args:
        alarms: step → why it looks like a collapse.
        surveys: whether there are answers before and after.
        settings: dotted keys with __ for the dots.
    """
    overrides = {key.replace("__", "."): value for key, value in settings.items()}
    config: Config = load_config(
        None,
        {"vote.grader": "exact", "steps": done, "baseline": surveys, "problems_per_step": len(problems), **overrides},
    )
    answers = AnswerKey(gold)
    rules = build_rules(config.vote, answers, token_limit=config.sampling.max_new_tokens)
    contents = {
        identity.CONFIG: dump_config(config),
        identity.PROBLEMS: "".join(f"{line}\n" for line in write_problems(problems)),
        identity.GOLD: "".join(f"{line}\n" for line in write_gold(answers)),
    }
    known = identity.of("model", "tokenizer", fingerprint(problems), "problems.jsonl", contents)
    run = create(path, "made", {**contents, IDENTITY: known.dumps()})

    def tallies(step: int) -> list[Tally]:
        return [vote(_group(problem, step, config.group_size, write), rules) for problem in problems]

    for step in range(1, done + 1):
        voted = tallies(step)
        files.write_lines(run.rollouts(step), (row for tally in voted for row in rollout_rows(tally)))
        report = step_report(
            step=step,
            tallies=voted,
            update=UPDATE,
            population={"population/sigma": 0.005 + 1e-5 * step, "population/mu_rms": 1e-4 * step},
            answers=answers,
            same=rules.grader.same,
            times={"time/sample": 2.0, "time/step": 5.0},
            flips=None if step == 1 else 0.1 / step,
            alarm=lambda metrics, step=step: (alarms or {}).get(step),
        )
        files.append_line(run.metrics, metrics_row(report))
    if surveys:
        for file, step in ((run.baseline, 0), (run.answers, done + 1)):
            rows = []
            for tally in tallies(step):
                row = answer_row(tally, answers, rules.grader.same)
                share = sum(rules.grader.same(a, gold.get(row["id"])) for a in tally.answers_G) / len(tally.answers_G)
                rows.append({**row, **({"accuracy": share} if "gold" in row else {})})
            identity.record(run, file.name, files.encode_lines(file, rows))
    return run


def _group(problem: Problem, step: int, size: int, write: Write) -> Group:
    rollouts = (
        Rollout(Mind(1000 * step + mind), (1,), (2, 3), (-0.5, -0.25), write(step, problem, mind), "stop", step)
        for mind in range(size)
    )
    return Group(problem, tuple(rollouts))
