"""The majority as a reward of TRL's trainer, alone and over processes."""

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest

accelerate = pytest.importorskip("accelerate")

from ttrl_pop.errors import UsageError  # noqa: E402
from ttrl_pop.integrations.trl import majority, voting  # noqa: E402

PROMPTS = ["1+1?"] * 3 + [[{"role": "user", "content": "2+2?"}]] * 3 + ["3+3?"] * 2
COMPLETIONS: list[Any] = [
    *("2", "2 of course", "3"),
    *([{"role": "assistant", "content": text}] for text in (r"\boxed{4}", r"\boxed{5}", r"so \boxed{4}")),
    *("", "6"),
]
REWARDS = [1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]


def test_rewards_are_the_votes_of_each_prompt() -> None:
    logged: dict[str, float] = {}
    rewards = majority(PROMPTS, COMPLETIONS, log_metric=logged.__setitem__, answer=["x"] * 8, trainer_state=None)
    assert rewards == REWARDS
    figures = {"agreement": (2 / 3, 2 / 3, 1 / 2), "margin": (1 / 3, 1 / 3, 1 / 2), "abstained": (0, 0, 1 / 2)}
    assert logged == pytest.approx({f"vote/{name}": sum(each) / 3 for name, each in figures.items()})


def test_other_settings_of_the_vote_can_be_had() -> None:
    by_frequency = voting(reward="frequency", grader="exact")
    assert by_frequency(PROMPTS[:3], COMPLETIONS[:3]) == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    with pytest.raises(UsageError, match="rewardz"):
        voting(rewardz="majority")


def test_a_completion_that_says_nothing_abstains() -> None:
    assert majority(["1+1?"] * 3, [[], [{"role": "assistant", "content": None}], "2"]) == [0.0, 0.0, 1.0]


def share(rank: int, port: int, queue: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port)}
    # As TRL's own arguments do.
    accelerate.PartialState(cpu=True)
    rows = slice(4 * rank, 4 * rank + 4)
    logged: dict[str, float] = {}
    rewards = voting(grader="exact")(PROMPTS[rows], COMPLETIONS[rows], log_metric=logged.__setitem__)
    queue.put((rank, rewards, logged))


def test_what_is_logged_of_two_rules_has_two_names() -> None:
    names = [voting(**given).__name__ for given in ({}, {"grader": "exact"}, {"grader": "exact", "reward": "gated"})]
    assert names == ["votes", "votes_grader=exact", "votes_grader=exact_reward=gated"]


@pytest.mark.slow
def test_a_group_that_two_processes_share_gets_the_labels_of_one() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=share, args=(rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    assert found[0][1] + found[1][1] == REWARDS
    assert found[0][2] == found[1][2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_trainer_takes_it_and_logs_it(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", minversion="1.16")
    datasets = pytest.importorskip("datasets")
    from fakes import save_tiny

    rows = [{"prompt": f"Q: What is {n} times 7?\nA:", "answer": str(7 * n)} for n in range(4)]
    trainer = trl.GRPOTrainer(
        model=str(save_tiny(tmp_path / "tiny")),
        reward_funcs=majority,
        args=trl.GRPOConfig(
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=4,
            max_steps=2,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "rewards/majority/mean" in row]
    assert len(logged) == 2
    assert all(0 <= row["vote/agreement"] <= 1 for row in logged)
