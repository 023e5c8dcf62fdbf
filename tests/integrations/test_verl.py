"""verl: the majority over its own batches, minds in its own agent loop, and a recipe that its own classes take."""

import asyncio
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import save_tiny

from ttrl_pop.errors import UsageError

pytest.importorskip("verl", minversion="0.9.1")

with warnings.catch_warnings():
    # What verl's packages warn of when they are imported is not ours to mend.
    warnings.simplefilter("ignore")
    import verl
    from hydra import compose, initialize_config_dir
    from tensordict import TensorDict
    from verl import DataProto
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker, DictConfigWrap
    from verl.trainer.ppo.reward import load_reward_manager, resolve_reward_manager_cls
    from verl.utils.config import omega_conf_to_dataclass, validate_config
    from verl.workers.rollout.replica import TokenOutput

    from ttrl_pop.integrations.verl import MajorityRewardManager, MindsAgentLoop
    from ttrl_pop.integrations.verl.loop import MIND

pytestmark = pytest.mark.filterwarnings("ignore")
CONFIGS = str(Path(verl.__file__).parent / "trainer/config")
N = 4
LOOP = asyncio.new_event_loop()
"""The loop of all tests: verl would make others, and leave them open."""


@pytest.fixture(scope="module", autouse=True)
def loop() -> Iterator[None]:
    asyncio.set_event_loop(LOOP)
    yield
    asyncio.set_event_loop(None)
    LOOP.run_until_complete(LOOP.shutdown_default_executor())
    LOOP.close()


def recipe(model: str = "some/model", *flags: str) -> Any:
    """The recipe as `main_ppo` composes it."""
    with initialize_config_dir(CONFIGS, version_base=None):
        return compose(
            "ppo_trainer",
            [
                "hydra.searchpath=[pkg://ttrl_pop.integrations.verl]",
                "+recipe=minds",
                f"actor_rollout_ref.model.path={model}",
                "data.train_files=problems.parquet",
                f"actor_rollout_ref.rollout.n={N}",
                *flags,
            ],
        )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("verl") / "model")


class Letters:
    """A tokenizer whose tokens are characters, and whose special token is 0."""

    def decode(self, ids: torch.Tensor, skip_special_tokens: bool = False) -> str:
        return "".join(chr(i) for i in ids.tolist() if i or not skip_special_tokens)


def row(uid: str, text: str, padding: int = 3) -> DataProto:
    """One rollout, padded as verl pads, whose ground truth nobody may look at."""
    ids = [ord(c) for c in text] + [0]
    batch = {
        "prompts": torch.tensor([[0, 0, 65]]),
        "responses": torch.tensor([[*ids, *([ord("9")] * padding)]]),
        "attention_mask": torch.tensor([[0, 0, 1, *([1] * len(ids)), *([0] * padding)]]),
    }
    others = {
        "uid": np.array([uid], dtype=object),
        "reward_model": np.array([{"ground_truth": "no number"}], dtype=object),
    }
    return DataProto(TensorDict(batch, batch_size=1), others)


def manager(*flags: str) -> MajorityRewardManager:
    return load_reward_manager(recipe("m", *flags), Letters())


def scores(made: MajorityRewardManager, rows: Sequence[DataProto]) -> list[dict[str, Any]]:
    async def together() -> list[dict[str, Any]]:
        return list(await asyncio.gather(*(made.run_single(data) for data in rows)))

    return LOOP.run_until_complete(together())


def test_each_group_is_voted_on_by_itself_whatever_the_order_in_which_rollouts_come() -> None:
    said = {"a": ["It is 6.", "6", "It is 7.", "6"], "b": ["It is 7.", "7", "7", ""]}
    rows = [(uid, text) for texts in zip(*said.values(), strict=True) for uid, text in zip(said, texts, strict=True)]
    found = scores(manager(), [row(uid, text) for uid, text in rows])
    assert [f["reward_score"] for f in found] == [1, 1, 1, 1, 0, 1, 1, 0]
    a, b = (found[n]["reward_extra_info"] for n in (0, 1))
    assert a == {"agreement": 0.75, "margin": 0.5, "abstained": 0.0}
    assert b["abstained"] == 0.25
    tensor = MajorityRewardManager.assemble_rm_scores(
        DataProto.concat([row("a", "6"), row("a", "7")]), [found[0]["reward_score"], found[4]["reward_score"]]
    )
    assert tensor.sum(1).tolist() == [1, 0]
    assert tensor[0].tolist()[1] == 1


def test_the_vote_has_the_settings_of_the_recipe() -> None:
    texts = [r"\boxed{x+1}", r"\boxed{1+x}", r"\boxed{x+1}", r"\boxed{2}"]
    assert [f["reward_score"] for f in scores(manager(), [row("u", t) for t in texts])] == [1, 1, 1, 0]
    shares = manager("+reward.reward_kwargs.vote.reward=frequency")
    assert [f["reward_score"] for f in scores(shares, [row("u", t) for t in texts])] == [0.75, 0.75, 0.75, 0.25]
    with pytest.raises(UsageError, match=r"vote\.grate"):
        manager("+reward.reward_kwargs.vote.grate=1")


def test_a_group_that_does_not_get_whole_fails_and_others_go_on() -> None:
    made = manager("reward.reward_kwargs.patience=0.2")

    async def together() -> list[Any]:
        rows = [row("whole", "6") for _ in range(N)] + [row("torn", "6") for _ in range(N - 1)]
        return list(await asyncio.gather(*(made.run_single(data) for data in rows), return_exceptions=True))

    found = LOOP.run_until_complete(together())
    assert [f["reward_score"] for f in found[:N]] == [1] * N
    assert all(isinstance(f, TimeoutError) and "3 of 4 rollouts" in str(f) for f in found[N:])


def test_what_goes_wrong_in_a_vote_is_told_to_all_who_wait_and_a_group_is_voted_on_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = manager()
    scores(made, [row("u", "6") for _ in range(N)])
    with pytest.raises(ValueError, match="more rollouts than"):
        scores(made, [row("u", "6")])

    def broken(*_: Any) -> Any:
        raise RuntimeError("the grader is gone")

    monkeypatch.setattr("ttrl_pop.integrations.verl.reward.vote", broken)

    async def together() -> list[Any]:
        rows = (made.run_single(row("v", "6")) for _ in range(N))
        return list(await asyncio.gather(*rows, return_exceptions=True))

    assert [str(error) for error in LOOP.run_until_complete(together())] == ["the grader is gone"] * N


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["reward.num_workers=8"], r"reward\.num_workers must be 1 .* got 8"),
        (["trainer.test_freq=5"], r"val_kwargs\.n must be rollout\.n .* got 1 and 4"),
        (["data.train_batch_size=512"], "must be at most 1000, got 2048"),
    ],
)
def test_settings_under_which_groups_do_not_get_whole_are_refused(flags: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        manager(*flags)


def test_the_most_that_wait_are_those_that_ray_lets_an_actor_hold() -> None:
    from ray._common.ray_constants import DEFAULT_MAX_CONCURRENCY_ASYNC

    from ttrl_pop.integrations.verl.reward import MOST

    assert MOST == DEFAULT_MAX_CONCURRENCY_ASYNC


def test_the_recipe_is_taken_by_verls_dataclasses_and_checks(tiny: Path) -> None:
    config = recipe(str(tiny))
    validate_config(config, use_reference_policy=False, use_critic=False)
    rollout = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    assert (rollout.n, rollout.enable_prefix_caching, rollout.calculate_log_probs) == (N, False, True)
    assert rollout.agent.default_agent_loop == "minds"
    assert dict(rollout.engine_kwargs)["vllm"]["worker_cls"].endswith("SeededWorker")
    # The dataclass of the table `reward` cannot be made in verl 0.9.1, not with verl's own settings either, which reads
    # the table as it stands.
    assert config.reward.num_workers == 1
    assert resolve_reward_manager_cls(config) is MajorityRewardManager
    algorithm = omega_conf_to_dataclass(config.algorithm)
    assert (algorithm.adv_estimator, algorithm.rollout_correction["rollout_is"]) == ("grpo", "token")
    omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    # What it names can be had wherever verl is.
    assert config.ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES == "ttrl_pop.integrations.verl"


class Server:
    """Stands for verl's client of vLLM: writes three tokens and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def generate(self, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any) -> TokenOutput:
        self.asked.append(sampling_params)
        await asyncio.sleep(0)
        return TokenOutput(token_ids=[5, 6, 7], log_probs=[-1.0, -2.0, -3.0], stop_reason="completed")


def worker(tiny: Path, server: Server, *flags: str) -> AgentLoopWorker:
    """verl's own worker of agent loops, with its tokenizer, over the server."""
    sizes = ["data.max_prompt_length=32", "data.max_response_length=8"]
    return AgentLoopWorker(recipe(str(tiny), *sizes, *flags), server, reward_loop_worker_handles=None)


def batch(count: int, validate: bool = False) -> DataProto:
    prompts = np.empty(count, dtype=object)
    prompts[:] = [[{"role": "user", "content": "2 x 3?"}]] * count
    rows = {"raw_prompt": prompts, "priority": np.arange(count), "index": np.arange(count) // N}
    return DataProto(None, rows, {"validate": validate, "global_steps": 1})


@pytest.fixture
def chats(tiny: Path) -> Iterator[Path]:
    """The tiny model with a template of chats."""
    file = tiny / "chat_template.jinja"
    file.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    yield tiny
    file.unlink()


def test_every_sequence_has_a_mind_of_its_own_and_keeps_its_seed(chats: Path) -> None:
    server = Server()
    out = LOOP.run_until_complete(worker(chats, server).generate_sequences(batch(2 * N)))
    sent = [asked["extra_args"]["mind"] for asked in server.asked]
    assert len(set(sent)) == 2 * N
    assert all(0 < seed < 2**63 for seed in sent)
    assert sorted(out.non_tensor_batch[MIND].tolist()) == sorted(sent)
    assert out.batch["responses"][:, :3].tolist() == [[5, 6, 7]] * (2 * N)
    assert out.batch["rollout_log_probs"][0, :3].tolist() == [-1.0, -2.0, -3.0]


def test_validation_is_greedy_and_of_the_mean_mind(chats: Path) -> None:
    server = Server()
    LOOP.run_until_complete(worker(chats, server).generate_sequences(batch(3, validate=True)))
    assert [(asked["temperature"], asked["extra_args"]["mind"]) for asked in server.asked] == [(0, 0)] * 3


def test_minds_come_again_where_verl_is_to_repeat_itself(chats: Path) -> None:
    sent = []
    for seed in (1, 1, 2):
        server = Server()
        flags = ("actor_rollout_ref.rollout.full_determinism=true", f"actor_rollout_ref.rollout.seed={seed}")
        LOOP.run_until_complete(worker(chats, server, *flags).generate_sequences(batch(N)))
        sent.append(sorted(asked["extra_args"]["mind"] for asked in server.asked))
    assert sent[0] == sent[1] != sent[2]
    assert len(set(sent[0])) == N


def test_parameters_that_rollouts_share_are_not_changed(chats: Path) -> None:
    made = worker(chats, server := Server())
    shared = {"temperature": 1.0, "extra_args": {"own": 1}}
    loop = MindsAgentLoop(
        trainer_config=DictConfigWrap(made.config),
        server_manager=server,
        tokenizer=made.tokenizer,
        processor=None,
        dataset_cls=made.dataset_cls,
        data_config=DictConfigWrap(made.config.data),
    )
    LOOP.run_until_complete(loop.run(shared, raw_prompt=[{"role": "user", "content": "2"}]))
    assert shared == {"temperature": 1.0, "extra_args": {"own": 1}}
    assert server.asked[0]["extra_args"]["own"] == 1


def test_verl_registers_both_where_it_is_told_of_the_module() -> None:
    code = (
        "import verl; from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls as g;"
        "from verl.experimental.agent_loop.agent_loop import _agent_loop_registry as r;"
        "print(g('majority').__name__, r['minds'])"
    )
    env = {**os.environ, "VERL_USE_EXTERNAL_MODULES": "ttrl_pop.integrations.verl"}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert "MajorityRewardManager" in out
    assert "MindsAgentLoop" in out
